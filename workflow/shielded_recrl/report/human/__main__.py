"""Commands of the human study."""

from shielded_recrl.cli import run_stage

run_stage(
    "report.human",
    {
        "sheet": "Draw a blinded sheet of pairs of explanations, and its key.",
        "score": "Score filled sheets: win rates, strengths, agreement.",
    },
)
