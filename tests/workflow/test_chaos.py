"""Faults on the way: the results are those of the calm run, or a line names what is damaged."""

import csv
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from shielded_recrl.files import read_jsonl, sha256

pytestmark = pytest.mark.slow

STEAM = {"study": [{"dataset": "steam", "variants": ["shielded"], "seeds": [1]}]}
TABLE = "results/aggregate_results.csv"
RUN = "results/rl/steam/shielded/seed-1"
SCRATCH = "results/scratch/rl/steam/shielded/seed-1"
TRAIN_LOG = "results/logs/rl/steam/shielded/seed-1/train.log"
MODEL = "results/explainer/steam/embedded/model"
TRAINING = "shielded_recrl.rl train"
# Of 20 kills, those of Snakemake itself.
KILLS, OF_SNAKEMAKE = 20, 3
# Jobs that are finished when the last kill is due, of 14.
LAST = 10
# CPU seconds into a job or into Snakemake: their imports alone take more.
MOMENTS = 1.5
OF_THE_MACHINE = {"seconds", "tokens_per_second", "memory_mb", "peak_memory_mb"}


def rows(copy) -> dict[tuple[str, str], dict[str, str]]:
    table = csv.DictReader(copy.read(TABLE).splitlines())
    return {(row["dataset"], row["variant"]): row for row in table}


def files(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def half_written(copy) -> list[Path]:
    return list((copy.folder / "results").rglob("*.partial*"))


def cpu_seconds(process: psutil.Process) -> float:
    """What a process has used; nothing once it has ended."""
    with suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            used = process.cpu_times()
            return used.user + used.system
    return -1.0


def jobs(snakemake: subprocess.Popen) -> dict[str, psutil.Process]:
    """The commands that Snakemake's jobs are running now."""
    found = {}
    with suppress(psutil.Error):
        for process in psutil.Process(snakemake.pid).children(recursive=True):
            with suppress(psutil.Error):
                command = process.cmdline()
                if "-m" in command[1:2] and command[2].startswith("shielded_recrl."):
                    found[" ".join(command[2:4])] = process
    return found


def alive(group: int) -> list[psutil.Process]:
    """Processes of a group that have not ended."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextmanager
def snakemake(copy, *args: str) -> Iterator[subprocess.Popen]:
    """A run that somebody started again; whatever happens, it leaves no process."""
    if any((copy.folder / ".snakemake/locks").glob("*")):
        copy.run("--unlock", TABLE, changes=STEAM)
    process = copy.start(
        TABLE, "--rerun-incomplete", *args, changes=STEAM, log=copy.folder / "run.log"
    )
    try:
        yield process
        process.wait()
        # Jobs end with their Snakemake, also with one that could not end them.
        while alive(process.pid):
            time.sleep(0.01)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Monkey:
    """Kills jobs and Snakemake, each when a number of jobs is done and some CPU time is spent."""

    def __init__(self, copy, seed: int):
        rng = random.Random(seed)
        victims = ["snakemake"] * OF_SNAKEMAKE + ["job"] * (KILLS - OF_SNAKEMAKE - 1)
        rng.shuffle(victims)
        due = sorted(rng.randrange(LAST + 1) for _ in victims)
        self.plan = [
            (done, who, rng.uniform(0, MOMENTS)) for done, who in zip(due, victims, strict=True)
        ]
        self.copy, self.killed, self.cut, self.told = copy, [], False, False

    def finished(self) -> int:
        return sum(1 for _ in (self.copy.folder / "results/benchmarks").rglob("*.tsv"))

    def visit(self, process: subprocess.Popen) -> None:
        """Kill what is due while this Snakemake lives."""
        while process.poll() is None and (self.plan or not (self.cut and self.told)):
            running = jobs(process)
            self.cut_checkpoint(running)
            self.told = self.told or self.says_damaged()
            if self.plan and self.finished() >= self.plan[0][0]:
                _, who, moment = self.plan[0]
                candidates = running if who == "job" else {who: psutil.Process(process.pid)}
                for name, victim in sorted(candidates.items()):
                    if cpu_seconds(victim) >= moment:
                        self.kill(name, victim)
                        self.plan.pop(0)
                        break
            # Looking costs time too; training has few steps in which it can be struck.
            time.sleep(0.02 if TRAINING in running else 0.1)

    def cut_checkpoint(self, running: dict[str, psutil.Process]) -> None:
        """Once, when training has two checkpoints: kill it, and cut the last one in half."""
        both = [
            self.copy.folder / SCRATCH / f"checkpoint{end}.safetensors" for end in ("", "-before")
        ]
        training = running.get(TRAINING)
        if self.cut or training is None or not all(path.exists() for path in both):
            return
        self.kill(TRAINING, training)
        with suppress(psutil.NoSuchProcess):
            training.wait()
        # Killed between two renames, it has left the one before alone; the next attempt will do.
        if both[0].exists():
            os.truncate(both[0], both[0].stat().st_size // 2)
            self.cut = True

    def says_damaged(self) -> bool:
        log = self.copy.folder / TRAIN_LOG
        return self.cut and log.exists() and "checkpoint.safetensors: damaged" in log.read_text()

    def kill(self, name: str, victim: psutil.Process) -> None:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
            self.killed.append(name)


@pytest.fixture(scope="module")
def survived(tiny, tmp_path_factory):
    """A run of one dataset among 20 kills, and who they were; `tiny` is the calm one."""
    copy = tiny.pristine(tmp_path_factory.mktemp("chaos") / "copy")
    monkey = Monkey(copy, seed=11)
    for _ in range(KILLS):
        with snakemake(copy, "--retries", "3") as process:
            monkey.visit(process)
        if process.returncode == 0:
            break
    assert process.returncode == 0, copy.read("run.log")
    return copy, monkey


class TestKills:
    """20 SIGKILLs at random moments, each followed by what people do: unlock, and run again."""

    def test_all_of_them_hit(self, survived):
        _, monkey = survived
        assert monkey.plan == []
        assert len(monkey.killed) >= KILLS
        assert monkey.killed.count("snakemake") == OF_SNAKEMAKE
        assert len(set(monkey.killed)) >= 5

    def test_the_cut_checkpoint_was_told_of(self, survived):
        _, monkey = survived
        assert monkey.cut
        assert monkey.told

    def test_the_table_is_that_of_the_calm_run(self, tiny, survived):
        copy, _ = survived
        (row,) = rows(copy).values()
        calm = rows(tiny)["steam", "shielded"]
        assert row.keys() == calm.keys()
        assert [key for key in row if row[key] != calm[key] and key not in OF_THE_MACHINE] == []

    @pytest.mark.parametrize(
        "folder",
        [
            *("data/steam", "ranker/steam", "explainer/steam", "shield/steam"),
            *("rl/steam/shielded/seed-1/adapter", "audit/steam"),
        ],
    )
    def test_files_are_those_of_the_calm_run(self, tiny, survived, folder):
        copy, _ = survived
        calm = files(tiny.folder / "results" / folder)
        assert calm
        assert files(copy.folder / "results" / folder) == calm

    def test_the_run_s_files_are_those_of_the_calm_run(self, tiny, survived):
        copy, _ = survived
        for name in ("snapshots.safetensors", "rankings.parquet", "users.parquet"):
            assert sha256(copy.folder / RUN / name) == sha256(tiny.folder / RUN / name), name
        ours, calm = (
            [
                {key: value for key, value in row.items() if key not in OF_THE_MACHINE}
                for row in read_jsonl(folder / RUN / "train.jsonl")
            ]
            for folder in (copy.folder, tiny.folder)
        )
        assert ours == calm

    def test_nothing_half_written_is_left_and_nothing_is_to_be_done(self, survived):
        copy, _ = survived
        assert half_written(copy) == []
        assert not list((copy.folder / SCRATCH).glob("*"))
        assert copy.plan(TABLE, changes=STEAM).jobs.total() == 0


@pytest.fixture
def small_disk(tiny, tmp_path):
    """A copy whose results lie on a disk that cannot hold the base LM, and how to enlarge it."""
    copy = tiny.pristine(tmp_path / "copy")
    disk = copy.folder / "results"
    disk.mkdir()

    def mount(options: str) -> subprocess.CompletedProcess:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        return subprocess.run(command, capture_output=True)

    if os.geteuid() != 0 or mount("size=320k").returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield copy, lambda: mount("remount,size=20m")
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_with_room_the_run_goes_on(tiny, small_disk):
    copy, enlarge = small_disk
    full = copy.run(MODEL, changes=STEAM, check=False)
    assert full.returncode != 0
    shown = [line for line in (full.stdout + full.stderr).splitlines() if "no space left" in line]
    assert shown
    assert all(
        line.endswith(
            f"error: {MODEL}: no space left on the disk; free some or put the folder on a larger one"
        )
        for line in shown
    )
    assert "Traceback" not in full.stdout + full.stderr
    assert not (copy.folder / MODEL).exists()
    assert half_written(copy) == []
    assert enlarge().returncode == 0
    copy.run(MODEL, changes=STEAM)
    for folder in ("data/steam", "explainer/steam/embedded/model"):
        assert files(copy.folder / "results" / folder) == files(tiny.folder / "results" / folder)


def flip(path: Path) -> None:
    """Turn one bit in the middle of a file, its size and time of change as before."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_flipped_bit_stops_the_stages_that_read_it(twin):
    parquet = "results/data/books/train.parquet"
    tensors = "results/ranker/steam/states.safetensors"
    ranker = "results/ranker/books/model.safetensors"
    (readout,) = (twin.folder / "results/shield/steam").rglob("readout.safetensors")
    readout = readout.relative_to(twin.folder).as_posix()
    for path in (parquet, tensors):
        flip(twin.folder / path)
    result = twin.run(
        *(ranker, readout, "--forcerun", ranker, readout, "--keep-going"), check=False
    )
    assert result.returncode != 0
    logs = [
        "results/logs/ranker/books/train.log",
        f"results/logs/{Path(readout).relative_to('results').with_suffix('.log')}",
    ]
    for log, path in zip(logs, (parquet, tensors), strict=True):
        (line,) = (line for line in twin.read(log).splitlines() if "error:" in line)
        assert line.endswith(
            f"error: {path}: damaged (its bytes do not match the checksum it was written with); "
            "delete it and run again"
        )
    assert not (twin.folder / ranker).exists()
    assert not (twin.folder / readout).exists()
