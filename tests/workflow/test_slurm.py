"""On a real Slurm: the run finishes whatever happens to a job or a node, with the results of a calm
one, and asks for what the rules say."""

import os
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from planted import SECRETS, names_in, told
from shielded_recrl.files import read_jsonl
from slurm.toy import (
    PROFILE,
    Faults,
    Job,
    Toy,
    Unavailable,
    different_cells,
    different_files,
    disturb,
    ranks,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MEM_MB, MINUTES = 1500, 90
READOUT = "results/shield/steam/embedded/prompt-72/readout.safetensors"
RUN = "results/rl/steam/shielded/seed-1"
# What is made again; prepared data, ranker and base LM stay, and save time.
FOLDERS = ("shield", "rl", "audit")
JOBS = {
    *("fit_readout", "collect_bases"),
    *("train_policy", "evaluate_policy", "probe_policy", "audit_policy"),
}


class Disturbed(NamedTuple):
    """A run that met faults."""

    folder: Path
    said: str
    jobs: list[Job]
    faults: Faults

    def of(self, rule):
        return [job for job in self.jobs if job.rule == rule]


def stop(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def toy():
    """Slurm with two virtual nodes; munge wants a folder that all may enter."""
    folder = Path(tempfile.mkdtemp(prefix="toy-slurm-"))
    slurm = Toy(folder)
    try:
        slurm.up()
        yield slurm
    except Unavailable as reason:
        pytest.skip(str(reason))
    finally:
        slurm.down()
        shutil.rmtree(folder)


def test_it_leaves_another_slurm_alone(toy, tmp_path):
    with pytest.raises(Unavailable, match="another Slurm is or was in use"):
        Toy(tmp_path).up()
    assert [path.name for path in tmp_path.iterdir()] == ["up.log"]


@pytest.fixture(scope="module")
def disturbed(toy, tiny, tmp_path_factory):
    """All of steam from its read-out on, with two jobs at once, one cancelled and one node lost."""
    copy = tiny.twin(tmp_path_factory.mktemp("slurm") / "copy")
    for folder in FOLDERS:
        shutil.rmtree(copy.folder / f"results/{folder}/steam")
    log = copy.folder / "said.log"
    process = copy.start(
        *(*PROFILE, "--jobs", "2", "--forcerun", READOUT),
        changes={"resources": {"gpu": 1, "mem_mb": MEM_MB, "runtime": MINUTES}},
        environment=SECRETS,
        log=log,
    )
    try:
        faults = disturb(toy, process, copy.folder)
        status = process.wait(1200)
    finally:
        stop(process)
    assert status == 0, log.read_text()
    return Disturbed(copy.folder, log.read_text(), toy.jobs(), faults)


class TestDisturbed:
    def test_table_is_that_of_the_local_run(self, disturbed, tiny):
        assert different_cells(disturbed.folder / "results", tiny.folder / "results") == []

    def test_results_are_those_of_the_local_run(self, disturbed, tiny):
        ours, theirs = disturbed.folder / "results", tiny.folder / "results"
        assert different_files(ours, theirs) == different_files(theirs, ours) == []

    def test_two_jobs_ran_at_once(self, disturbed):
        first, second = disturbed.faults.together
        assert first.rule != second.rule

    def test_one_was_cancelled_one_lost_and_both_ran_again(self, disturbed):
        cancelled, lost = disturbed.faults.cancelled, disturbed.faults.lost
        states = {job.number: job.state for job in disturbed.jobs}
        assert (states.pop(cancelled.number), states.pop(lost.number)) == ("CANCELLED", "NODE_FAIL")
        assert set(states.values()) == {"COMPLETED"}
        counts = Counter(job.rule for job in disturbed.jobs)
        assert counts == dict.fromkeys(JOBS, 1) | {cancelled.rule: 2, lost.rule: 2}

    def test_training_went_on_where_it_was_lost(self, disturbed):
        log = disturbed.folder / "results/logs/rl/steam/shielded/seed-1/train.log"
        assert "resumed at step" in log.read_text()

    def test_jobs_ask_for_what_their_rules_say(self, disturbed):
        for rule in JOBS:
            first = disturbed.of(rule)[0]
            light = rule == "audit_policy"
            assert first.mem_mb == (1000 if light else MEM_MB), rule
            assert first.minutes == (240 if light else MINUTES), rule
            assert first.gpus == (not light), rule
            assert first.cpus == 1, rule

    def test_second_attempt_asks_for_twice_the_memory(self, disturbed):
        for fault in (disturbed.faults.cancelled, disturbed.faults.lost):
            first, second = disturbed.of(fault.rule)
            assert (first.mem_mb, second.mem_mb) == (MEM_MB, 2 * MEM_MB)
            assert (first.minutes, first.gpus) == (second.minutes, second.gpus)

    def test_no_key_is_told(self, disturbed, toy):
        assert told(disturbed.folder / ".snakemake") == []
        assert told(disturbed.folder / "results") == []
        assert names_in(disturbed.said.encode()) == []
        assert told(toy.folder / "log") == []
        scripts = list(toy.folder.glob("state/hash.*/job.*/script"))
        assert len(scripts) >= len(disturbed.jobs)
        assert [script for script in scripts if names_in(script.read_bytes())] == []

    def test_the_planted_keys_did_reach_the_jobs(self, disturbed, toy):
        environments = list(toy.folder.glob("state/hash.*/job.*/environment"))
        assert all(names_in(file.read_bytes()) for file in environments)
        assert len(environments) >= len(disturbed.jobs)
        # Slurm keeps them for as long as it keeps the job, where root alone can read.
        assert {file.stat().st_mode & 0o077 for file in environments} == {0}


@pytest.fixture(scope="module")
def shared(toy, tiny, tmp_path_factory):
    """Training with a rank on each of two GPUs, and too little memory for that at first."""
    copy = tiny.twin(tmp_path_factory.mktemp("ranks") / "copy")
    before = {job.number for job in toy.jobs()}
    log = copy.folder / "said.log"
    process = copy.start(
        f"{RUN}/summary.json",
        *(*PROFILE, "--jobs", "2", "--force"),
        changes={"resources": {"gpu": 2, "mem_mb": 500}},
        log=log,
    )
    try:
        started = wait_for(
            lambda: next((found for job in toy.running() if len(found := ranks(job)) > 1), {}),
            process,
        )
        status = process.wait(600)
    finally:
        stop(process)
    assert status == 0, log.read_text()
    return copy.folder, started, [job for job in toy.jobs() if job.number not in before]


class TestRanks:
    def test_torchrun_starts_one_rank_a_gpu(self, shared):
        _, started, jobs = shared
        assert started == {"0": "0,1", "1": "0,1"}
        assert {(job.rule, job.gpus, job.cpus) for job in jobs} == {("train_policy", 2, 2)}

    def test_two_ranks_make_the_updates_of_one(self, shared, tiny):
        folder, _, _ = shared
        for name in ("reward", "kl", "value_loss"):
            curves = [
                [row[name] for row in read_jsonl(copy / RUN / "train.jsonl")]
                for copy in (folder, tiny.folder)
            ]
            assert curves[0] == pytest.approx(curves[1], abs=1e-4)

    def test_what_dies_of_memory_comes_back_with_more(self, shared):
        folder, _, jobs = shared
        assert [job.state for job in jobs] == ["FAILED"] * (len(jobs) - 1) + ["COMPLETED"]
        assert len(jobs) > 1
        assert [job.mem_mb for job in jobs] == [1000 * 2**n for n in range(len(jobs))]
        logs = folder / ".snakemake/slurm_logs/rule_train_policy"
        assert "exceeded memory limit" in next(logs.rglob(f"{jobs[0].number}.log")).read_text()
