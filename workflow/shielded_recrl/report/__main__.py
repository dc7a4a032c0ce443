"""Commands of the report stage."""

from shielded_recrl.cli import run_stage

run_stage("report", {"aggregate": "Collect runs and audits into one table, figures and LaTeX."})
