"""Checkpoints: whole or refused, and never another run's."""

import random

import numpy as np
import pytest
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.resume import (
    Progress,
    discard_progress,
    fingerprint,
    load_progress,
    random_state,
    restore_random_state,
    save_progress,
)

STATE = Progress(
    step=7,
    log=[{"step": 1, "reward": 0.1 + 0.2, "kl": 1e-17}, {"step": 2, "reward": -3.0}],
    tensors={
        "weight/a": torch.randn(3, 4).T,
        "adam.step/a": torch.tensor(7.0),
        "weight/half": torch.randn(5).bfloat16(),
    },
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "scratch" / "checkpoint.safetensors"
    save_progress(path, STATE, "owner")
    return path


def test_round_trip_is_exact(path):
    got = load_progress(path, "owner")
    assert (got.step, got.log) == (STATE.step, STATE.log)
    assert got.tensors.keys() == STATE.tensors.keys()
    for name, tensor in STATE.tensors.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert torch.equal(got.tensors[name], tensor)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_another_run_s_checkpoint_is_left_alone(path, tmp_path):
    before = path.read_bytes()
    assert load_progress(path, "other") is None
    assert path.read_bytes() == before
    assert load_progress(tmp_path / "none", "owner") is None


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_checkpoint_is_one_line(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError) as caught:
        load_progress(path, "owner")
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", [None, {"fingerprint": "owner"}, {"step": "1", "log": "[]"}])
def test_a_file_of_another_kind_is_refused(tmp_path, metadata):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "x", metadata=metadata)
    with pytest.raises(UserError, match="damaged checkpoint"):
        load_progress(tmp_path / "x", "owner")


def test_a_new_checkpoint_replaces_the_old_one(path):
    save_progress(path, STATE._replace(step=8), "owner")
    assert load_progress(path, "owner").step == 8


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(path, kept, capsys):
    for step in (8, 9):
        save_progress(path, STATE._replace(step=step), "owner")
    path.write_bytes(path.read_bytes()[:kept])
    assert load_progress(path, "owner").step == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path}: damaged")
    # What is left is whole, and stays so if the next one cannot be written.
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint-before.safetensors"]
    for step in (9, 10):
        save_progress(path, STATE._replace(step=step), "owner")
    path.write_bytes(b"")
    assert load_progress(path, "owner").step == 9


def test_one_flipped_bit_is_found(path):
    whole = path.read_bytes()
    for at in (60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"checkpoint\.safetensors: damaged"):
            load_progress(path, "owner")


def test_killed_between_two_renames_a_run_goes_on_from_the_one_before(path):
    save_progress(path, STATE._replace(step=8), "owner")
    path.unlink()
    assert load_progress(path, "owner").step == STATE.step


def test_the_one_before_may_be_another_run_s(path):
    save_progress(path, STATE._replace(step=8), "other")
    assert load_progress(path, "other").step == 8
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="damaged checkpoint"):
        load_progress(path, "other")


def test_a_run_that_has_ended_leaves_no_checkpoint(path):
    save_progress(path, STATE._replace(step=8), "owner")
    discard_progress(path)
    assert list(path.parent.iterdir()) == []
    discard_progress(path)


def test_the_fingerprint_reads_values_not_order():
    values = {"seed": 1, "settings": {"rate": 0.1, "steps": 3}}
    assert fingerprint(values) == fingerprint({"settings": {"steps": 3, "rate": 0.1}, "seed": 1})
    assert fingerprint(values) != fingerprint({**values, "seed": 2})


def dice() -> tuple:
    """Draws of every global generator; of a normal one NumPy and Python keep the second."""
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),  # noqa: NPY002
        np.random.randn(),  # noqa: NPY002
        torch.rand(()).item(),
        torch.randn(3).tolist(),
    )


def test_random_states_come_back_from_disk(tmp_path):
    before = random_state()
    try:
        dice()
        save_progress(tmp_path / "x", Progress(1, [], random_state()), "owner")
        drawn = [dice() for _ in range(3)]
        restore_random_state(load_progress(tmp_path / "x", "owner").tensors)
        assert [dice() for _ in range(3)] == drawn
    finally:
        restore_random_state(before)


def test_reading_random_states_draws_nothing():
    before = random_state()
    assert all(torch.equal(before[name], state) for name, state in random_state().items())
