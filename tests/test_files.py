"""Writing is all or nothing, also on a full disk; equal values give equal bytes; damage is told."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from shielded_recrl.errors import UserError
from shielded_recrl.files import (
    SEAL,
    atomic,
    intact,
    read_json,
    read_jsonl,
    remove_partial,
    sealed,
    sha256,
    write_json,
    write_jsonl,
    write_text,
)
from shielded_recrl.parquet import read_parquet
from shielded_recrl.shield.serving import read_tensors

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
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


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


def _parquet(path, rows=100_000):
    numbers = np.random.default_rng(0).random(rows)
    pl.DataFrame({"a": numbers}).write_parquet(path, metadata=SEAL)


def _safetensors(path, rows=100_000):
    save_file({"a": np.arange(rows)}, path)


@pytest.mark.parametrize("write", [_text, _parquet, _safetensors])
def test_full_disk_is_one_line_and_leaves_nothing(full_disk, write):
    full = pytest.raises(UserError, match=r"big: no space left on the disk")
    with full as raised, atomic(full_disk / "big") as partial:
        write(partial)
    assert "\n" not in str(raised.value)
    assert names(full_disk) == []


def test_full_disk_while_a_file_is_sealed(full_disk):
    full = pytest.raises(UserError, match=r"big: no space left on the disk")
    with full, sealed(full_disk / "big") as partial:
        _safetensors(partial, rows=5000)
    assert names(full_disk) == []


@given(value=VALUES)
def test_json_round_trip(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_a_folder_is_the_same_once_snakemake_has_marked_it(tmp_path):
    write_json(tmp_path / "a", {"x": 1})
    digest = sha256(tmp_path)
    (tmp_path / ".snakemake_timestamp").touch()
    assert sha256(tmp_path) == digest
    write_json(tmp_path / "b", {"x": 1})
    assert sha256(tmp_path) != digest


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


COLUMNS = {"user": pl.Int32, "title": pl.String}
ROWS = {"user": [1, 2, 3], "title": ["a", "seal\x18\x47sha256:" + "0" * 64, "c"]}
TENSORS = {"weight": np.arange(6.0).reshape(2, 3), "gamma": np.array(0.5)}
# safetensors alone would write them in any order.
METADATA = {"format": "pt", "about": '{"seed": 1}', "note": 'é "quoted" \n'}


def write_sealed(path):
    with sealed(path) as partial:
        if path.suffix == ".parquet":
            # With the longest and shortest texts in the footer.
            pl.DataFrame(ROWS, schema=COLUMNS).write_parquet(partial, metadata=SEAL)
        else:
            save_file(TENSORS, partial, METADATA)
    return path


def content(path):
    """What the library's own reader makes of a file."""
    if path.suffix == ".parquet":
        return read_parquet(path, COLUMNS).to_dict(as_series=False)
    return {name: (t.dtype.str, t.tolist()) for name, t in read_tensors(path).items()}


@pytest.fixture(scope="module", params=["parquet", "safetensors"])
def whole(request, tmp_path_factory):
    """A sealed file, its bytes and its content."""
    path = write_sealed(tmp_path_factory.mktemp("sealed") / f"file.{request.param}")
    return path, path.read_bytes(), content(path)


def told_or_equal(whole, damaged):
    """Whether damage was told; else the content is what was written."""
    path, _, expected = whole
    path.write_bytes(damaged)
    try:
        found = content(path)
    except UserError as error:
        line = str(error)
    else:
        assert found == expected
        return False
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return True


class TestSeal:
    def test_other_readers_pass_over_it(self, tmp_path):
        table = pl.read_parquet(write_sealed(tmp_path / "a.parquet"))
        assert table.to_dict(as_series=False) == ROWS
        with safe_open(write_sealed(tmp_path / "a.safetensors"), "np") as file:
            assert METADATA.items() < file.metadata().items()
            assert file.get_tensor("weight").tolist() == TENSORS["weight"].tolist()

    def test_equal_content_is_equal_bytes(self, whole, tmp_path):
        path, data, _ = whole
        for name in "abcdef":
            assert write_sealed(tmp_path / f"{name}{path.suffix}").read_bytes() == data

    def test_it_is_the_digest_of_the_file_with_zeros_in_its_place(self, whole):
        path, data, _ = whole
        path.write_bytes(data)
        if path.suffix == ".parquet":
            seal = pl.read_parquet_metadata(path)["seal"]
        else:
            with safe_open(path, "np") as file:
                seal = file.metadata()["seal"]
        blank = data.replace(seal.encode(), SEAL["seal"].encode())
        assert seal == f"sha256:{hashlib.sha256(blank).hexdigest()}"

    def test_a_flip_of_any_byte_is_told_or_harmless(self, whole):
        data = whole[1]
        bits = np.random.default_rng(1).integers(8, size=len(data))
        told = [
            told_or_equal(whole, data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            for at, bit in enumerate(bits.tolist())
        ]
        # Harmless: in the word before the digits, or in the name of the key.
        assert told.count(False) <= len('seal":"sha256:')

    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def test_other_damage_is_told_or_harmless(self, whole, data):
        """Cut off, a block of zeros as of a lost page, a block of noise, bytes twice or gone."""
        whole_file = whole[1]
        start, end = sorted(
            data.draw(st.tuples(*[st.integers(0, len(whole_file))] * 2), label="block")
        )
        block = data.draw(
            st.sampled_from([b"", bytes(end - start), 2 * whole_file[start:end]])
            | st.binary(min_size=end - start, max_size=end - start)
        )
        tail = data.draw(st.sampled_from([whole_file[end:], b""]))
        told_or_equal(whole, whole_file[:start] + block + tail)

    def test_a_damaged_file_says_what_to_do(self, whole):
        path, data, _ = whole
        at = data.index(b"\x00" * 4 if path.suffix == ".safetensors" else b"PAR1") + 8
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        with pytest.raises(UserError) as raised:
            intact(path)
        assert str(raised.value) == (
            f"{path}: damaged (its bytes do not match the checksum it was written with); "
            "delete it and run again"
        )

    def test_of_a_folder_the_damaged_file_is_named(self, tmp_path):
        folder = tmp_path / "adapter"
        with sealed(folder) as partial:
            (partial / "deep").mkdir(parents=True)
            (partial / "config.json").write_text("{}")
            for name in ("a.safetensors", "deep/b.safetensors"):
                save_file(TENSORS, partial / name)
        assert intact(folder) == folder
        bad = folder / "deep/b.safetensors"
        whole = bad.read_bytes()
        bad.write_bytes(whole[:-1] + b"\x01")
        with pytest.raises(UserError, match=f"^{bad}: damaged .* delete {folder} and run again$"):
            intact(folder)
        bad.write_bytes(whole)
        # Documents beside the weights are sealed with them; what came later is not.
        (folder / "card.json").write_text("{}")
        assert intact(folder) == folder
        for damage in (lambda path: path.write_text("[]"), Path.unlink):
            damage(folder / "config.json")
            with pytest.raises(UserError, match=f"^{folder / 'config.json'}: damaged"):
                intact(folder)

    def test_what_is_not_ours_passes(self, tmp_path):
        pl.DataFrame({"user": [1, 2], "title": ["a", "b"]}).write_parquet(tmp_path / "a.parquet")
        save_file(TENSORS, tmp_path / "a.safetensors", METADATA)
        (tmp_path / "text").write_text("seal\x18\x47sha256:" + "1" * 64)
        (tmp_path / "long").write_bytes((2**60).to_bytes(8, "little") + b"{}")
        (tmp_path / "empty").touch()
        for path in [*tmp_path.iterdir(), tmp_path / "missing"]:
            assert intact(path) == path

    def test_a_parquet_file_without_a_place_for_it_is_a_mistake_of_ours(self, tmp_path):
        with pytest.raises(ValueError, match="metadata SEAL"), sealed(tmp_path / "a") as partial:
            pl.DataFrame({"user": [1, 2]}).write_parquet(partial)
        assert names(tmp_path) == []

    def test_sealing_again_changes_nothing(self, tmp_path):
        path = write_sealed(tmp_path / "a.safetensors")
        data = path.read_bytes()
        with sealed(tmp_path / "b.safetensors") as partial:
            partial.write_bytes(data)
        assert (tmp_path / "b.safetensors").read_bytes() == data


KILLED = """
import os, sys
from pathlib import Path
from shielded_recrl.files import atomic
with atomic(Path(sys.argv[1]) / "model") as outer:
    outer.mkdir()
    with atomic(outer / "weights") as inner:
        inner.with_name(inner.name + ".sealing").write_text("half")
        inner.write_text("half")
        os._exit(9)
"""


def test_what_a_killed_process_left_is_removed_and_what_others_write_is_not(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode == 9
    (left,) = tmp_path.iterdir()
    assert len(list(left.iterdir())) == 2
    elsewhere = tmp_path / ".a.json.another_machine-1-1-0123abcd.partial"
    for path in (elsewhere, tmp_path / "kept.json", tmp_path / "download.zip.partial"):
        path.write_text("half")
    with atomic(tmp_path / "mine.json") as partial:
        partial.write_text("mine")
        remove_partial(tmp_path)
    assert names(tmp_path) == sorted(
        [elsewhere.name, "download.zip.partial", "kept.json", "mine.json"]
    )
    remove_partial(tmp_path / "missing")


def test_jsonl_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n{"b": "\xff"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl: not UTF-8 text"):
        read_jsonl(tmp_path / "rows.jsonl")
