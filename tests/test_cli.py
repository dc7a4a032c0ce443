"""Commands: what help says, and that every mistake is one line and exit status 1."""

import gc
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from shielded_recrl.cli import run_stage

STAGES = ["audit", "data", "explainer", "ranker", "report", "rl", "shield"]


def call(stage, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"shielded_recrl.{stage}", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("flag", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(stage, flag):
    result = call(stage, *flag)
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: python -m shielded_recrl.{stage} COMMAND")
    listed = result.stdout.split("commands:\n")[1].splitlines()
    assert listed
    for line in listed:
        name, summary = line.split(maxsplit=1)
        assert name.isidentifier()
        assert len(summary) > 10


@pytest.mark.parametrize("stage", STAGES)
def test_unknown_command_is_one_line(stage):
    result = call(stage, "dance")
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert f"shielded_recrl.{stage}: unknown command 'dance'; expected one of: " in line


def test_help_of_a_command_explains_every_argument():
    text = call("data", "prepare", "--help").stdout
    for word in ("--dataset", "--interactions", "--min-weight", "--seed"):
        assert word in text
    assert "Iterated k-core" in text


def test_bad_input_is_one_line(tmp_path):
    result = call(
        "data",
        *("prepare", "--dataset", "steam", "--interactions", "no.csv", "--out", str(tmp_path)),
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("python -m shielded_recrl.data prepare: error: no.csv: ")


def test_value_out_of_range_is_one_line(tmp_path):
    result = call(
        "data",
        *("prepare", "--dataset", "steam", "--interactions", "no.csv", "--out", str(tmp_path)),
        *("--valid-share", "0.7"),
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line == (
        "python -m shielded_recrl.data prepare: error: valid_share: "
        "Input should be less than 0.5; got 0.7"
    )


def test_unknown_flag_names_it_without_a_trace(tmp_path):
    result = call("data", "prepare", "--colour", "red")
    assert result.returncode != 0
    assert "--colour" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def stopped(monkeypatch, capsys):
    """Run a function as the command `data act`; its exit status and what it leaves on stderr."""

    def run(main):
        module = ModuleType("shielded_recrl.data.act")
        module.main = main
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(sys, "argv", ["data", "act"])
        with pytest.raises(SystemExit) as stop:
            run_stage("data", {"act": "What a test does."})
        return stop.value.code, capsys.readouterr().err

    return run


def test_an_interrupt_is_one_line_and_130(stopped):
    def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    # Shells start what runs in the background with interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert stopped(main) == (130, "python -m shielded_recrl.data act: interrupted\n")
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_while_it_imports_is_one_line_too(stopped, monkeypatch):
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert stopped(None) == (130, "python -m shielded_recrl.data act: interrupted\n")
    assert gc.isenabled()


def test_what_the_system_refuses_is_one_line(stopped, tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "table.csv"

    def main() -> None:
        Path(inside).write_text("")

    # A text as the code of an exit goes to stderr, with status 1.
    assert stopped(main) == (
        f"python -m shielded_recrl.data act: error: {inside}: Not a directory; "
        "give a path that can be read and written",
        "",
    )


def test_a_system_error_without_a_file_is_its_own_reason(stopped):
    def main() -> None:
        raise TimeoutError("the hub\nis silent")

    assert stopped(main)[0] == "python -m shielded_recrl.data act: error: the hub"
