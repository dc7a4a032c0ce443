"""The Slurm of up.sh: what its jobs asked for, and faults for a run on it to survive."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil

from shielded_recrl.files import sha256

HERE = Path(__file__).resolve().parent
PROFILE = ("--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "1")
FIELDS = (
    *("JobID", "State", "NodeList", "MinMemory", "TimeLimit", "TimeUsed", "tres-alloc"),
    "Comment",
)
CHECKPOINT = "results/scratch/rl/{}/{}/seed-{}/checkpoint.safetensors"
# Slurm takes a job that a node does not know for one that is about to start, for so many seconds.
STARTING = 25
# What the clock and the machine decide.
MEASURED = {"seconds", "peak_memory_mb"}

Found = TypeVar("Found")


class Unavailable(Exception):
    """No Slurm can be had here, and why."""


class Job(NamedTuple):
    """What a job asked for, and what became of it."""

    number: str
    state: str
    node: str
    mem_mb: int
    minutes: int
    seconds: int
    cpus: int
    gpus: int
    rule: str
    wildcards: str


class Faults(NamedTuple):
    """Jobs as they were when they met their fault."""

    together: list[Job]
    cancelled: Job
    lost: Job


class Toy:
    """Two virtual nodes on this machine, with all they write in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def up(self) -> None:
        """Start every daemon that is not running.

        Raises:
            Unavailable: this machine can't have it.
        """
        command = [HERE / "up.sh", self.folder]
        owner = {"OWNER": str(os.getpid())}
        log = self.folder / "up.log"
        # No pipe: the daemons would hold it open.
        with log.open("w") as file:
            done = subprocess.run(command, env=os.environ | owner, stdout=file, stderr=file)
        if done.returncode == 77:
            raise Unavailable(log.read_text().splitlines()[-1])
        assert done.returncode == 0, log.read_text()

    def down(self) -> None:
        """Stop every daemon and every job."""
        subprocess.run([HERE / "down.sh", self.folder], check=True)

    def jobs(self) -> list[Job]:
        """All jobs so far, in the order of their submission."""
        fields = ",".join(f"{field}:|" for field in FIELDS)
        text = subprocess.run(
            ["squeue", "--noheader", "--states=all", "--sort=i", "--Format", fields],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return [_job(line.split("|")) for line in text.splitlines()]

    def running(self) -> list[Job]:
        return [job for job in self.jobs() if job.state == "RUNNING"]

    def job(self, number: str) -> Job:
        return next(job for job in self.jobs() if job.number == number)

    def cancel(self, job: Job) -> None:
        subprocess.run(["scancel", job.number], check=True)

    def kill_node(self, name: str) -> None:
        """What a power cut does: slurmd, and every process of its jobs, end without a word."""
        daemon = psutil.Process(int((self.folder / f"run/slurmd.{name}.pid").read_text()))
        numbers = [job.number for job in self.running() if job.node == name]
        steps = [step for number in numbers for step in _steps(number)]
        for process in [daemon, *steps, *(p for step in steps for p in step.children(True))]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                # It ended by itself meanwhile, or since its parent did.
                continue
        daemon.wait(60)


def ranks(job: Job) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES of every rank that torchrun has started in a job, by rank."""
    found = {}
    for step in _steps(job.number):
        for process in step.children(recursive=True):
            try:
                environment = process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if "TORCHELASTIC_RUN_ID" in environment:
                found[environment["RANK"]] = environment["CUDA_VISIBLE_DEVICES"]
    return found


def wait_for(condition: Callable[[], Found], run: subprocess.Popen, seconds: float = 600) -> Found:
    """What a condition gives once it is true; it has to be before the run ends."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert run.poll() is None, f"the run ended first, with status {run.returncode}"
        assert time.monotonic() < until, f"nothing for {seconds} seconds"
        time.sleep(0.5)
    return found


def disturb(toy: Toy, run: subprocess.Popen, folder: Path) -> Faults:
    """Cancel one of two jobs that run side by side; take the node of a training away, and give it
    back."""
    together = wait_for(lambda: jobs if len(jobs := toy.running()) == 2 else [], run)
    toy.cancel(together[1])

    def training() -> Job | None:
        saved = {
            "_".join((*path.parts[-4:-2], path.parts[-2].removeprefix("seed-")))
            for path in folder.glob(CHECKPOINT.format("*", "*", "*"))
        }
        jobs = [job for job in toy.running() if job.rule == "train_policy"]
        return next((job for job in jobs if job.wildcards in saved), None)

    lost = wait_for(training, run, 3600)
    toy.kill_node(lost.node)
    wait_for(lambda: toy.job(lost.number).seconds >= STARTING, run)
    toy.up()
    wait_for(lambda: toy.job(lost.number).state != "RUNNING", run)
    return Faults(together, together[1], lost)


def different_files(results: Path, others: Path) -> list[str]:
    """Files of the first results that are not byte for byte in the other, save what measures time."""
    names = [
        path.relative_to(results)
        for folder in ("data", "ranker", "explainer", "shield", "rl", "audit")
        for path in results.joinpath(folder).rglob("*")
        if path.is_file() and path.name not in ("summary.json", "train.jsonl")
    ]
    assert names
    return [
        str(name)
        for name in names
        if not (others / name).exists() or sha256(results / name) != sha256(others / name)
    ]


def different_cells(results: Path, others: Path) -> list[str]:
    """Cells of the table that differ, save those that measure the machine."""
    tables = [
        list(csv.DictReader((folder / "aggregate_results.csv").read_text().splitlines()))
        for folder in (results, others)
    ]
    assert len(tables[0]) == len(tables[1]) > 0
    return [
        f"{row['dataset']}/{row['variant']}/seed-{row['seed']}: {name}: {row[name]} and {other[name]}"
        for row, other in zip(*tables, strict=True)
        for name in row.keys() - MEASURED
        if row[name] != other[name]
    ]


def _steps(number: str) -> Iterator[psutil.Process]:
    """The processes of Slurm that look after a job."""
    for process in psutil.process_iter(["cmdline"]):
        if re.match(rf"slurmstepd: \[{number}\.", " ".join(process.info["cmdline"] or [])):
            yield process


def _job(fields: list[str]) -> Job:
    number, state, node, memory, limit, used, allocated, comment, _ = fields
    rule, wildcards = re.fullmatch(r"rule_(\w+?)(?:_wildcards_(.*))?", comment.strip()).groups()
    return Job(
        number=number,
        state=state,
        node=node,
        mem_mb=int(float(memory[:-1]) * {"M": 1, "G": 1024}[memory[-1]]),
        minutes=_seconds(limit) // 60,
        seconds=_seconds(used),
        cpus=_count(allocated, "cpu"),
        gpus=_count(allocated, "gres/gpu"),
        rule=rule,
        wildcards=wildcards or "",
    )


def _count(allocated: str, name: str) -> int:
    return sum(int(count) for count in re.findall(rf"\b{name}=(\d+)", allocated))


def _seconds(text: str) -> int:
    """[days-][[hours:]minutes:]seconds; a job that has not started has used no time."""
    days, _, clock = text.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return 86400 * int(days or 0) + seconds
