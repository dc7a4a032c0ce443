"""The data stage's real command line, and small raw files in the true formats."""

import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

HEADER = "userId,movieId,rating,timestamp\n"


@dataclass(frozen=True)
class Outcome:
    """How a command ended: 0 and its output, or 1 and the message of sys.exit."""

    code: int
    message: str
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Run `python -m shielded_recrl.data ...` in this process."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["data", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("shielded_recrl.data", run_name="__main__")
        code = end.value.code
        message = code if isinstance(code, str) else ""
        streams = capsys.readouterr()
        return Outcome(1 if message else code, message, streams.out, streams.err)

    return run


@pytest.fixture
def ratings(tmp_path) -> Path:
    """Six users who each rate the same six movies, one an hour."""
    path = tmp_path / "ratings.csv"
    path.write_text(
        HEADER + "".join(f"{u},{m},4.0,{3600 * m + u}\n" for u in range(1, 7) for m in range(1, 7))
    )
    return path
