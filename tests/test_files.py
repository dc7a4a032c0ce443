"""Writing is all or nothing, also on a full disk; equal values give equal bytes."""

import errno
import os
import subprocess

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from shielded_recrl.errors import UserError
from shielded_recrl.files import (
    atomic,
    read_json,
    read_jsonl,
    sha256,
    write_json,
    write_jsonl,
    write_text,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates are no text.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
    max_leaves=10,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_half_way(file, error, whole=None):
    """Write `file`, or the folder `whole` it lies in, and fail before the end."""

    def write():
        with atomic(whole or file) as partial:
            half = partial / file.name if whole else partial
            half.parent.mkdir(exist_ok=True)
            half.write_text("half")
            assert half.exists()
            raise error

    with pytest.raises(error):
        write()


@pytest.fixture
def full_disk(tmp_path):
    """A disk of 64 KiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


class TestAtomic:
    def test_writes_a_file_into_new_folders(self, tmp_path):
        path = tmp_path / "a" / "b.txt"
        with atomic(path) as partial:
            partial.write_text("whole")
            assert not path.exists()
        assert path.read_text() == "whole"
        assert names(path.parent) == ["b.txt"]

    def test_failure_keeps_the_old_file_and_nothing_else(self, tmp_path):
        path = tmp_path / "b.txt"
        path.write_text("old")
        fail_half_way(path, KeyError)
        assert path.read_text() == "old"
        assert names(tmp_path) == ["b.txt"]

    def test_interrupt_leaves_nothing(self, tmp_path):
        fail_half_way(tmp_path / "b.txt", KeyboardInterrupt)
        assert names(tmp_path) == []

    def test_folder_replaces_the_old_folder(self, tmp_path):
        path = tmp_path / "model"
        for name in ("old", "new"):
            with atomic(path) as partial:
                partial.mkdir()
                (partial / name).write_text(name)
        assert names(path) == ["new"]
        assert names(tmp_path) == ["model"]

    def test_failure_keeps_the_old_folder(self, tmp_path):
        path = tmp_path / "model"
        path.mkdir()
        (path / "old").write_text("old")
        fail_half_way(path / "new", RuntimeError, whole=path)
        assert names(path) == ["old"]
        assert names(tmp_path) == ["model"]

    def test_other_system_errors_pass(self, tmp_path):
        with pytest.raises(PermissionError), atomic(tmp_path / "b.txt"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def test_full_disk_at_the_rename(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(UserError, match=r"b\.txt: no space left on the disk"):
            write_text(tmp_path / "b.txt", "text")
        assert names(tmp_path) == []


def _text(path):
    path.write_text("x" * 1_000_000)


def _parquet(path):
    pl.DataFrame({"a": np.random.default_rng(0).random(100_000)}).write_parquet(path)


def _safetensors(path):
    save_file({"a": np.zeros(100_000)}, path)


@pytest.mark.parametrize("write", [_text, _parquet, _safetensors])
def test_full_disk_is_one_line_and_leaves_nothing(full_disk, write):
    full = pytest.raises(UserError, match=r"big: no space left on the disk")
    with full as raised, atomic(full_disk / "big") as partial:
        write(partial)
    assert "\n" not in str(raised.value)
    assert names(full_disk) == []


@given(value=VALUES)
def test_json_round_trip(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_of_equal_values_is_equal_bytes(tmp_path):
    write_json(tmp_path / "a", {"x": 1, "y": 2})
    write_json(tmp_path / "b", {"y": 2, "x": 1})
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


def test_json_refuses_what_is_no_number(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", {"x": float("nan")})
    assert names(tmp_path) == []


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=50, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text("abc"), VALUES), max_size=5))
def test_jsonl_round_trip(rows, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows


def test_damaged_json_names_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2: not valid JSON"):
        read_jsonl(path)
    with pytest.raises(UserError, match=r"rows\.jsonl: not valid JSON"):
        read_json(path)


class TestSha256:
    def test_of_a_file_is_the_published_digest(self, tmp_path):
        (tmp_path / "a").write_bytes(b"abc")
        digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert sha256(tmp_path / "a") == digest

    def test_of_a_folder_depends_on_names_and_bytes_alone(self, tmp_path):
        def folder(name, **files):
            (tmp_path / name / "deep").mkdir(parents=True)
            for file, text in files.items():
                (tmp_path / name / "deep" / file).write_text(text)
            return sha256(tmp_path / name)

        digest = folder("one", a="1", b="2")
        assert digest == folder("two", b="2", a="1")
        assert digest != folder("three", a="1", c="2")
        assert digest != folder("four", a="1", b="3")
        assert digest != folder("five", a="2", b="1")
