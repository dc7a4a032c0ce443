"""The whole branch in one piece, by Snakemake: complete, finished, and rerun where a setting says so."""

import shutil

import pytest

from shielded_recrl.files import read_json, sha256
from workflow.conftest import Copy, clean_copy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CONFIG = "tests/tiny_dialogue.yaml"
BRANCH = "results/dialogue"
TARGET = f"{BRANCH}/report/manifest.json"
POLICY = f"{BRANCH}/rl/seed-1"
# What a change of the config starts, in the order of the DAG.
RERUNS = {
    "judge": (
        {"judge": {"temperature": 0.9}},
        ("judge_responses", "train_critic", "train_responses", "evaluate_responses"),
    ),
    "rl": ({"rl": {"kl_weight": 0.1}}, ("train_responses", "evaluate_responses")),
    "evaluation": ({"evaluation": {"test_turns": 7}}, ("evaluate_responses",)),
}
SUMMARY = ("report_dialogue", "manifest_dialogue")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Copy:
    """A copy of the repository in which the branch ran."""
    copy = clean_copy(tmp_path_factory.mktemp("branch") / "copy")
    copy.run(TARGET, config=CONFIG)
    return copy


def test_the_branch_is_whole_and_has_nothing_left_to_do(done):
    made = {path.name for path in (done.folder / "results").iterdir()}
    assert {"dialogue", "logs", "benchmarks"} <= made
    assert not made & {"data", "ranker", "explainer", "shield", "rl", "audit"}
    listed = done.run("--summary", TARGET, config=CONFIG).stdout.splitlines()
    files = [line.split("\t")[0] for line in listed[1:] if line.startswith(BRANCH)]
    assert len(files) > 25
    assert [name for name in files if not (done.folder / name).exists()] == []
    assert all(log.stat().st_size for log in (done.folder / "results/logs/dialogue").rglob("*.log"))
    assert done.plan(TARGET, config=CONFIG).rules == {}


def test_no_gate_was_lowered_and_the_policy_moved(done):
    """The tiny config leaves the bounds of the default, and every stage passed them."""
    assert "min_recall" not in done.read(CONFIG)
    critic = read_json(done.folder / BRANCH / "critic/report.json")
    assert min(head["gain"]["low"] for head in critic["heads"].values()) > 0
    assert min(kind["share"]["low"] for kind in critic["corruptions"].values()) > 0.5
    summary = read_json(done.folder / POLICY / "summary.json")
    assert summary["distance"]["moved"] == summary["distance"]["layers"] > 0
    assert summary["recall"]["before"] == summary["recall"]["after"]


@pytest.mark.parametrize("changed", RERUNS)
def test_a_setting_reruns_what_depends_on_it_and_nothing_else(done, changed):
    changes, reruns = RERUNS[changed]
    plan = done.plan(TARGET, config=CONFIG, changes={"dialogue": changes})
    assert plan.rules == dict.fromkeys((*reruns, *SUMMARY), 1)


def test_a_policy_that_is_lost_is_trained_again_to_the_same_bytes(done, tmp_path):
    twin = done.twin(tmp_path / "twin")
    adapter = twin.folder / POLICY / "adapter"
    before = sha256(adapter)
    shutil.rmtree(adapter)
    twin.run(f"{POLICY}/adapter", config=CONFIG)
    assert sha256(adapter) == before
