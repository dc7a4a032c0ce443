"""Where jobs start: this Python first, this library first, threads that do not fight."""

import os
import sys
from pathlib import Path

import shielded_recrl
from shielded_recrl.machine import count_gpus, prepare_environment


def test_jobs_find_this_python_and_this_library():
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "/elsewhere"}
    prepare_environment(environment)
    python = str(Path(sys.executable).parent)
    assert environment["PATH"].split(os.pathsep) == [python, "/usr/bin", "/bin"]
    library = str(Path(shielded_recrl.__file__).resolve().parents[1])
    assert environment["PYTHONPATH"].split(os.pathsep) == [library, "/elsewhere"]


def test_empty_and_repeated_entries_are_left_out():
    environment = {"PYTHONPATH": ""}
    prepare_environment(environment)
    once = dict(environment)
    prepare_environment(environment)
    assert environment == once
    assert not environment["PYTHONPATH"].endswith(os.pathsep)


def test_waiting_threads_sleep():
    environment = {}
    prepare_environment(environment)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_gpus_are_those_the_driver_shows(tmp_path):
    assert count_gpus(tmp_path / "no driver") == 0
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
    assert count_gpus(tmp_path) == 2
