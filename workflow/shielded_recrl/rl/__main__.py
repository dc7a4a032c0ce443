"""Commands of the rl stage."""

from shielded_recrl.cli import run_stage

run_stage(
    "rl",
    {
        "rlhf": "The plain RLHF loop; flags without a command are its own.",
        "train": "Train an explainer with PPO, under a shield or without one.",
        "generate": "Sample one shard of the texts that an evaluation measures.",
        "evaluate": "Measure drift, ranking and simulated clicks of a trained explainer.",
    },
    default="rlhf",
)
