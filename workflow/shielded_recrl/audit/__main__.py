"""Commands of the audit stage."""

from shielded_recrl.cli import run_stage

run_stage("audit", {"run": "Audit toxicity, popularity and privacy before and after training."})
