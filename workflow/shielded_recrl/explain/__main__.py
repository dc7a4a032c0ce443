"""The command of the explain package."""

from shielded_recrl.cli import run_stage

run_stage(
    "explain",
    {"recommend": "Recommend items to a user and say why; --serve opens pages to browse."},
    default="recommend",
)
