"""The real workflow in copies of the repository, so that no test touches the results of the user."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import yaml
from filelock import FileLock

import forked
from planted import SECRETS

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "PYTHONPATH": "",
    "OMP_NUM_THREADS": "1",
    # No job compiles, but to import bitsandbytes is to get ready for it: a fifth of a job's start.
    "TORCHDYNAMO_DISABLE": "1",
}
TEXT = {
    *("dataset", "variant", "seed", "shield", "provenance", "notes"),
    *("certificate_protected", "certificate_heldout"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test asks for `tiny` first waits for the whole run, others for its lock."""
    for item in items:
        if "tiny" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(1800))


@cache
def snakemake_that_forks() -> subprocess.Popen:
    """The process of forked.py, which also ends when this one does."""
    return subprocess.Popen(
        # Without the folder of the script on its path, as `python -m snakemake` is.
        [sys.executable, "-P", forked.__file__],
        env=os.environ | {"PYTHONPATH": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def pytest_sessionfinish() -> None:
    """Leave no process behind."""
    if snakemake_that_forks.cache_info().currsize:
        with snakemake_that_forks() as server:
            server.stdin.close()


class Plan(NamedTuple):
    """What a dry run would do: the message of every job, and the jobs of each rule."""

    jobs: Counter[str]
    rules: Counter[str]


@dataclass(frozen=True)
class Copy:
    """A copy of the repository with its own results."""

    folder: Path

    def start(
        self,
        *targets: str,
        config: str | None = "tests/tiny.yaml",
        changes: dict[str, Any] | None = None,
        log: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen:
        """Start `snakemake`, `changes` laid over the config, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *self._arguments(targets, config, changes)],
            cwd=self.folder,
            env=self._environment(environment),
            stdout=subprocess.PIPE if log is None else log.open("w"),
            stderr=subprocess.PIPE if log is None else subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _arguments(
        self, targets: tuple[str, ...], config: str | None, changes: dict[str, Any] | None
    ) -> list[str]:
        files = [] if config is None else ["--configfile", config]
        if changes is not None:
            (self.folder / "changes.yaml").write_text(yaml.safe_dump(changes))
            files.append("changes.yaml")
        return ["--cores", "2", *targets, *files]

    def _environment(self, more: dict[str, str] | None) -> dict[str, str]:
        return os.environ | ENVIRONMENT | (more or {})

    def run(
        self,
        *targets: str,
        config: str | None = "tests/tiny.yaml",
        changes: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess:
        """Run `snakemake` to its end; a test that is stopped leaves no job behind."""
        arguments = self._arguments(targets, config, changes)
        server = snakemake_that_forks()
        with TemporaryDirectory() as folder:
            said = [Path(folder, name) for name in ("stdout", "stderr")]
            call = {
                "folder": str(self.folder),
                "environment": self._environment(environment),
                "arguments": arguments,
                "said": [str(path) for path in said],
            }
            try:
                print(json.dumps(call), file=server.stdin, flush=True)
                status = int(server.stdout.readline())
            except BaseException:
                os.killpg(server.pid, signal.SIGKILL)
                snakemake_that_forks.cache_clear()
                raise
            stdout, stderr = (path.read_text(encoding="utf-8") for path in said)
        assert status == 0 or not check, f"{stdout}\n{stderr}"
        return subprocess.CompletedProcess(arguments, status, stdout, stderr)

    def plan(self, *args: str, **settings: Any) -> Plan:
        """The jobs a run would start."""
        result = self.run("-n", *args, **settings)
        text = result.stdout + result.stderr
        jobs = Counter(re.findall(r"^Job \d+: (.+)$", text, re.MULTILINE))
        table = re.search(r"^job +count\n[- ]+\n((?:\w+ +\d+\n)+)", text, re.MULTILINE)
        if table is None:
            assert "Nothing to be done" in text
            assert not jobs
            return Plan(jobs, Counter())
        rules = {name: int(count) for name, count in map(str.split, table[1].splitlines())}
        assert rules.pop("total") == sum(rules.values()) == jobs.total()
        return Plan(jobs, Counter(rules))

    def read(self, path: str) -> str:
        return (self.folder / path).read_text(encoding="utf-8")

    def edit(self, path: Path | str, old: str, new: str) -> None:
        """Replace the one place where `old` stands."""
        file = self.folder / path
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times"
        file.write_text(text.replace(old, new), encoding="utf-8")

    def pristine(self, folder: Path) -> "Copy":
        """A copy of this copy without its results."""
        left_out = shutil.ignore_patterns("results", ".snakemake")
        shutil.copytree(self.folder, folder, symlinks=True, ignore=left_out)
        return Copy(folder)

    def twin(self, folder: Path) -> "Copy":
        """A copy of this copy, results and times of change included."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Copy(folder)


def clean_copy(folder: Path) -> Copy:
    """The files of the repository as they are now, without anything ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return Copy(folder)


@pytest.fixture
def clean(tmp_path) -> Copy:
    """A copy in which nothing has run."""
    return clean_copy(tmp_path / "copy")


@pytest.fixture(scope="session")
def untouched(tmp_path_factory) -> Copy:
    """A copy in which nothing has run, shared by tests that only look."""
    return clean_copy(tmp_path_factory.mktemp("untouched") / "copy")


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything in a folder."""
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {
        path.relative_to(folder).as_posix(): (stat.st_size, stat.st_mtime_ns)
        for path, stat in found.items()
    }


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Iterator[Copy]:
    """The finished run of tests/tiny.yaml, one for all workers of pytest-xdist.

    It is only read: a test that changes it, or runs Snakemake in it, takes a `twin`. Keys stand in the
    environment it ran in, which test_secrets.py looks for in what it left.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    copy, done = Copy(shared / "tiny"), shared / "tiny.done"
    with FileLock(shared / "tiny.lock"):
        if not done.exists():
            shutil.rmtree(copy.folder, ignore_errors=True)
            clean_copy(copy.folder).run(environment=SECRETS)
            done.touch()
    before = state(copy.folder)
    yield copy
    after = state(copy.folder)
    changed = {name for name in before.keys() | after if before.get(name) != after.get(name)}
    assert changed == set(), "a test changed what all share"


@pytest.fixture
def twin(tiny, tmp_path) -> Copy:
    """A finished run to change at will."""
    return tiny.twin(tmp_path / "twin")


@pytest.fixture(scope="session")
def assert_whole():
    """Check a row of the table: every number is finite, an empty cell is named in the notes."""

    def check(row: dict[str, str]) -> None:
        for name, cell in row.items():
            if name in TEXT or cell in ("true", "false"):
                continue
            if cell == "":
                explained = re.findall(r"[\w@]+(?=[^:;]*: )", row["notes"])
                assert name in explained, f"{name} is empty, notes say {row['notes']!r}"
            else:
                assert math.isfinite(float(cell)), f"{name} is {cell}"

    return check
