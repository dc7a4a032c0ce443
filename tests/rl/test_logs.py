"""Rows keep to the schema, and loggers hold the same numbers at the same steps, once each."""

import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shielded_recrl import memory
from shielded_recrl.errors import UserError
from shielded_recrl.rl.logs import (
    StepLog,
    advance,
    checked,
    open_loggers,
    peak_memory_mb,
    progress_bar,
)

ROOT = Path(__file__).resolve().parents[2]


def make_row(step, **extra):
    """A row whose figures differ from key to key and step to step; whole numbers stay whole."""
    row = {}
    for place, (name, field) in enumerate(StepLog.model_fields.items()):
        row[name] = step * 100 + place if field.annotation is int else step + place / 7
    return row | {"step": step} | extra


def scalars(folder):
    """(tag, step) -> value of every scalar in a folder of event files, as often as it stands there."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [
        ((tag, event.step), event.value)
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    ]


def expected(rows):
    """The same of rows; TensorBoard keeps fp32."""
    return {
        (key, row["step"]): float(np.float32(value))
        for row in rows
        for key, value in row.items()
        if key != "step"
    }


class TestSchema:
    def test_every_figure_has_a_unit_and_a_meaning(self):
        for field in StepLog.model_fields.values():
            assert field.json_schema_extra["unit"]
            assert field.description.endswith(".")

    def test_a_whole_row_passes_with_components_and_probes(self):
        row = make_row(3, reward_length=0.25, drift=0.0, ctr=np.float64(0.5))
        assert checked(row) == row

    def test_json_schema_agrees(self):
        schema = json.loads((ROOT / "workflow/schemas/train.schema.json").read_text())
        validator = Draft202012Validator(schema)
        assert validator.is_valid(make_row(1, reward_length=0.5))
        assert not validator.is_valid(make_row(1, note="fine"))
        assert not validator.is_valid(make_row(0))
        assert not validator.is_valid({"step": 1})

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"reward_length": "high"}, "step 7, reward_length: Input should be a valid number"),
            ({"drift": float("nan")}, "step 7, drift: Input should be a finite number; got nan"),
            ({"kl": float("inf")}, "step 7, kl: Input should be a finite number; got inf"),
            ({"ended": True}, "step 7, ended: Input should be a valid number; got True"),
            ({"drift": None}, "step 7, drift: Input should be a valid number; got None"),
            ({"updates": 1.5}, "step 7, updates: Input should be a valid integer; got 1.5"),
            ({"seconds": -1.0}, "step 7, seconds: Input should be greater than or equal to 0"),
            ({"step": 0}, "step 0, step: Input should be greater than or equal to 1; got 0"),
        ],
    )
    def test_a_bad_value_is_one_line_with_step_and_key(self, change, says):
        with pytest.raises(UserError, match=re.escape(says)) as raised:
            checked(make_row(7) | change)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("key", sorted(StepLog.model_fields))
    def test_a_missing_key_is_named(self, key):
        row = make_row(7)
        del row[key]
        with pytest.raises(UserError, match=f", {key}: Field required;") as raised:
            checked(row)
        assert len(str(raised.value)) < 150

    @given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
    def test_any_further_finite_figure_is_kept(self, key, value):
        if key not in StepLog.model_fields:
            assert checked(make_row(1) | {key: value})[key] == value


class TestTensorBoard:
    def test_event_files_hold_the_rows(self, tmp_path):
        rows = [make_row(step, reward_length=0.1 * step) for step in (1, 2, 3)]
        with open_loggers(
            tmp_path, ["tensorboard"], run_name="run", config={}, first_step=1
        ) as write:
            for row in rows:
                write(row)
        found = scalars(tmp_path / "tb")
        assert dict(found) == expected(rows)
        assert len(found) == len(dict(found))

    def test_a_resumed_run_has_each_step_once(self, tmp_path):
        """Killed after step 4, resumed from the checkpoint of step 2."""
        for first, last, run in ((1, 4, 0.0), (3, 5, 1.0)):
            with open_loggers(
                tmp_path, ["tensorboard"], run_name="run", config={}, first_step=first
            ) as write:
                for step in range(first, last + 1):
                    write(make_row(step, run=run))
        found = [(step, value) for (tag, step), value in scalars(tmp_path / "tb") if tag == "run"]
        assert found == [(1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0), (5, 1.0)]

    def test_a_row_is_on_disk_when_written(self, tmp_path):
        with open_loggers(
            tmp_path, ["tensorboard"], run_name="run", config={}, first_step=1
        ) as write:
            write(make_row(1))
            assert dict(scalars(tmp_path / "tb")) == expected([make_row(1)])

    def test_no_logger_writes_nothing(self, tmp_path):
        with open_loggers(tmp_path, [], run_name="run", config={}, first_step=1) as write:
            write(make_row(1))
        assert not list(tmp_path.iterdir())


def records(folder):
    """Records of the one offline run in a folder: protobuf in LevelDB's log format.

    Blocks of 32 KiB, the first one after a header of 7 bytes; a fragment is checksum, length, kind
    (whole 1, first 2, middle 3, last 4) and data; one that does not fit is followed by zeros.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.rglob("*.wandb")
    data, at, whole, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(whole))
            whole = b""
    return found


def finished(folder, seconds=30):
    """The same, once W&B's service has written the last of them; it does so after `finish`."""
    until = time.monotonic() + seconds
    while not (found := records(folder)) or not found[-1].HasField("exit"):
        assert time.monotonic() < until, "the run has no end"
        time.sleep(0.05)
    return found


class TestWandb:
    @pytest.fixture(autouse=True)
    def _no_account(self, monkeypatch):
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)

    def test_an_offline_run_holds_the_rows_and_the_config(self, tmp_path):
        pytest.importorskip("wandb")
        rows = [make_row(step) for step in (4, 5)]
        with open_loggers(
            tmp_path, ["wandb"], run_name="cats", config={"clip_ratio": 0.2}, first_step=4
        ) as write:
            for row in rows:
                write(row)
        found = finished(tmp_path / "wandb")
        history = [
            {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in each}
            for each in (record.history.item for record in found if record.HasField("history"))
        ]
        assert [
            {key: value for key, value in row.items() if not key.startswith("_")}
            | {"step": row["_step"]}
            for row in history
        ] == rows
        (run,) = [record.run for record in found if record.HasField("run")]
        assert (run.display_name, run.run_group, run.host) == ("cats", "cats", "")
        assert {item.key: item.value_json for item in run.config.update}["clip_ratio"] == "0.2"

    def test_a_missing_package_is_one_line_that_names_the_extra(self, tmp_path, monkeypatch):
        """And both places where a user may have asked for it."""
        monkeypatch.setitem(sys.modules, "wandb", None)
        with (
            pytest.raises(UserError, match=r"^logger wandb: not installed; .+\[wandb\]") as raised,
            open_loggers(tmp_path, ["wandb"], run_name="run", config={}, first_step=1),
        ):
            pass
        assert "resources.loggers (of --logger" in str(raised.value)

    @pytest.mark.parametrize("mode", ["online", "telepathy"])
    def test_a_mode_that_cannot_work_is_one_line(self, tmp_path, monkeypatch, mode):
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", mode)
        monkeypatch.setenv("HOME", str(tmp_path))
        with (
            pytest.raises(UserError, match=f"wandb: does not start in mode {mode}") as raised,
            open_loggers(tmp_path, ["wandb"], run_name="run", config={}, first_step=1),
        ):
            pass
        assert "\n" not in str(raised.value)


def test_loggers_are_loaded_when_asked_for():
    """Commands that only read settings pay for neither torch nor W&B."""
    code = (
        "import sys, shielded_recrl.rl.logs;"
        "print([name for name in ('torch', 'tensorboard', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_bar_shows_reward_kl_and_speed(capsys):
    with progress_bar(first_step=3, steps=4, name="cats") as bar:
        advance(bar, make_row(3) | {"reward": 0.51234, "kl": -0.01, "tokens_per_second": 1234.5})
        assert bar.n == 3
        advance(bar, make_row(4) | {"reward": 0.5, "kl": 0.25, "tokens_per_second": 99.9})
        assert bar.n == bar.total == 4
    assert "reward=0.500, kl=0.250, tokens/s=100" in capsys.readouterr().err


def test_a_silent_bar_says_nothing(capsys):
    with progress_bar(first_step=1, steps=1, name="cats", disable=True) as bar:
        advance(bar, make_row(1))
    assert capsys.readouterr().err == ""


def test_peak_memory_sees_a_large_array():
    before = peak_memory_mb(cuda=False)
    assert 10 < before < 2**20
    big = np.ones(int((before + 64) * 2**20 / 8))
    assert peak_memory_mb(cuda=False) > before + 32
    del big


def test_peak_memory_is_the_process_own_and_not_its_parents():
    big = np.ones(400 * 2**20 // 8)
    code = "from shielded_recrl.rl.logs import peak_memory_mb; print(peak_memory_mb(False))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10 < float(done.stdout) < 200
    assert peak_memory_mb(cuda=False) > 400
    del big


def test_peak_memory_where_there_is_no_proc(monkeypatch, tmp_path):
    """ru_maxrss is no less: it has what the parent held, too."""
    own = peak_memory_mb(cuda=False)
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    assert own - 1 < peak_memory_mb(cuda=False) < 2**20
