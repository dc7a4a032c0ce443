"""Commands of the report stage."""

from shielded_recrl.cli import run_stage

run_stage(
    "report",
    {
        "aggregate": "Collect runs and audits into one table, figures and LaTeX.",
        "significance": "Test every variant against shielded, with Holm's correction.",
        "criteria": "Judge the success criteria of the study.",
        "pages": "Turn the pages of the report into self-contained HTML.",
        "model_card": "Make a release folder of a run's adapter, with a model card.",
        "manifest": "List every artefact of a study with its checksum.",
        "verify": "Check a folder of results against its manifest.",
        "judge": "Ask an LLM which of two explanations is better, in both orders.",
    },
)
