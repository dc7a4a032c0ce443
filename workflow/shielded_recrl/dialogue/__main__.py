"""Commands of the dialogue stage."""

from shielded_recrl.cli import run_stage

run_stage(
    "dialogue",
    {
        "make": "Write generated dialogues in the raw formats of ReDial and GoEmotions.",
        "prepare": "Read raw dialogues; write turns, mentions, feedback and splits.",
        "emotions": "Train the emotion classifier on GoEmotions.",
        "annotate": "Label every turn with emotions.",
        "fuse": "Train item and user representations: emotional semantic fusion.",
        "recommend": "Train the emotion-aware recommender and evaluate it.",
        "pretrain": "Train the embedded base LM of responses.",
        "supervise": "Train a LoRA adapter on the recommender's turns.",
        "judge": "Score gold, sampled and corrupted responses with the judges.",
        "critic": "Train the multi-head critic on what the judges said.",
        "train": "Train the supervised response LM with PPO.",
        "evaluate": "Compare supervised, best-of-N and RL responses on test dialogues.",
        "compare": "Show the comparison of the three as a table.",
        "samples": "Show dialogues with the three responses side by side.",
        "report": "Write the comparison report.",
        "manifest": "List every artefact of the branch with its checksum.",
    },
)
