"""Where jobs start: this Python first, this library first, threads that do not fight."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import shielded_recrl
from shielded_recrl.machine import count_gpus, lease_gpu, prepare_environment


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


def test_downloads_of_the_hub_stay_beside_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = {}
    prepare_environment(environment)
    assert "HF_HOME" not in environment
    (tmp_path / ".cache/huggingface").mkdir(parents=True)
    prepare_environment(environment)
    assert environment["HF_HOME"] == str(tmp_path / ".cache/huggingface")
    environment = {"HF_HOME": "/elsewhere"}
    prepare_environment(environment)
    assert environment["HF_HOME"] == "/elsewhere"


def test_gpus_are_those_a_container_was_given(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert count_gpus(tmp_path) == 0
    for name in ("nvidia2", "nvidia5", "nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert count_gpus(tmp_path) == 1
    for nothing in ("", "-1", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert count_gpus(tmp_path) == 0


@contextmanager
def leasing(folder, count):
    """A job that leases one of several GPUs until it is killed; gives the index."""
    command = (
        "import pathlib, sys, time; from shielded_recrl.machine import lease_gpu; "
        f"print(lease_gpu({count}, pathlib.Path({str(folder)!r})), flush=True); time.sleep(600)"
    )
    job = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    try:
        yield int(job.stdout.readline())
    finally:
        job.kill()
        job.communicate()


def test_each_job_has_a_gpu_of_its_own_until_it_dies(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with leasing(tmp_path, 2) as first:
        with leasing(tmp_path, 2) as second, leasing(tmp_path, 2) as third:
            # One more than there are shares the first.
            assert (first, second, third) == (0, 1, 0)
        with leasing(tmp_path, 2) as again:
            assert again == 1


def test_a_gpu_is_the_same_one_by_any_index(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    with leasing(tmp_path, 2) as first:
        assert first == 0
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        with leasing(tmp_path, 2) as second:
            # Number 1 is taken by the other's index 0.
            assert second == 0
        with leasing(tmp_path, 2), leasing(tmp_path, 2) as third:
            assert third == 0


def test_a_process_keeps_its_gpu(tmp_path):
    lease_gpu.cache_clear()
    try:
        assert lease_gpu(2, tmp_path) == lease_gpu(2, tmp_path) == 0
    finally:
        lease_gpu.cache_clear()


def test_a_job_runs_on_the_gpu_it_leased(tmp_path, monkeypatch):
    import torch

    from shielded_recrl.explainer.base import default_device

    chosen = [0]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    lease_gpu.cache_clear()
    try:
        with leasing(tmp_path, 2):
            assert default_device() == default_device() == torch.device("cuda", 1)
        # torchrun has chosen for its processes.
        monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
        chosen.append(0)
        assert default_device() == torch.device("cuda", 0)
    finally:
        lease_gpu.cache_clear()
