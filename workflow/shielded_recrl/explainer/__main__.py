"""Commands of the explainer stage."""

from shielded_recrl.cli import run_stage

run_stage(
    "explainer",
    {
        "pretrain": "Train the embedded base LM on templated explanations of the train split.",
        "fetch": "Download a base LM from the hub at a pinned commit.",
        "init": "Initialise a LoRA adapter for a base LM.",
    },
)
