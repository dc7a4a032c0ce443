"""No job that training waits for runs, or reads anything written by, the held-out evaluation."""

import re

import pytest

from shielded_recrl.provenance import import_closure

pytestmark = pytest.mark.slow

EVALUATION = "shielded_recrl.rl.evaluation"
COMMAND = re.compile(r"python -m shielded_recrl\.(\w+) (\w+)")
TRAINED = [
    f"results/rl/{dataset}/{variant}/seed-42/adapter"
    for dataset in ("books", "ml25m", "steam")
    for variant in ("shielded", "no_proj")
]


@pytest.fixture(scope="module")
def dry_run(untouched):
    """What Snakemake would do to train policies, on three datasets: every job and its command."""
    result = untouched.run("-n", "--printshellcmds", *TRAINED, config="config/config.yaml")
    return result.stdout + result.stderr


def commands(text):
    return {f"shielded_recrl.{stage}.{name}" for stage, name in COMMAND.findall(text)}


def test_commands_before_a_trained_policy_cannot_reach_a_simulator(dry_run):
    found = commands(dry_run)
    assert {"shielded_recrl.data.prepare", "shielded_recrl.rl.train"} <= found
    for command in found:
        reached = [name for name in import_closure(command) if name.startswith(EVALUATION)]
        assert reached == [], command


def test_the_walk_would_see_one(dry_run):
    assert EVALUATION in import_closure("shielded_recrl.rl.evaluate")
    assert "shielded_recrl.rl.evaluate" not in commands(dry_run)


def test_no_file_of_an_evaluation_an_audit_or_the_report_is_read(untouched):
    summary = untouched.run("--detailed-summary", *TRAINED, config="config/config.yaml").stdout
    assert "results/data/books/train.parquet" in summary
    for written in ("evaluation.json", "explanations.jsonl", "rankings.parquet", "results/audit"):
        assert written not in summary
