"""A small archive cannot fill memory, disk or time; see tests/data/test_archive.py for what else it may be."""

import gzip
import hashlib
import io
import tracemalloc
import zipfile

import pytest

from shielded_recrl.data import archive, raw
from shielded_recrl.data.archive import byte_lines, extracted
from shielded_recrl.errors import UserError

UNPACKED = 8 << 20
# What is in the bomb: blank lines, which are no rows, and rows that are all alike.
CONTENT = {"blank": b"\n", "rows": b"1,2,4,3\n", "one line": b" "}
READERS = {
    "blocks": lambda path: raw.blocks(path, hashlib.sha256()),
    "lines": byte_lines,
}


def bomb(content: bytes) -> bytes:
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=9) as packed:
        for _ in range(UNPACKED >> 20):
            packed.write(content * ((1 << 20) // len(content)))
    return stream.getvalue()


@pytest.fixture(scope="module", params=CONTENT)
def packed(request) -> bytes:
    return bomb(CONTENT[request.param])


@pytest.mark.parametrize("reader", READERS)
def test_a_gzip_bomb_is_given_up(tmp_path, packed, reader, monkeypatch):
    monkeypatch.setattr(archive, "FREE", 1 << 20)
    monkeypatch.setattr(raw.blocks, "__defaults__", (1 << 20,))
    path = tmp_path / "reviews.json.gz"
    path.write_bytes(packed)
    assert len(packed) < UNPACKED / archive.MAX_RATIO
    read = 0
    with pytest.raises(UserError) as error:
        for piece in READERS[reader](path):
            read += len(piece)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert read <= max(archive.FREE, archive.MAX_RATIO * len(packed)) + (1 << 20)


@pytest.mark.parametrize("reader", READERS)
def test_an_honest_file_is_read_to_its_end(tmp_path, reader, monkeypatch):
    """Tables of numbers shrink to a tenth, and these rows to a fiftieth."""
    monkeypatch.setattr(archive, "FREE", 1 << 16)
    path = tmp_path / "ratings.csv.gz"
    text = b"".join(b"%d,%d,4.0,1000000000\n" % (n // 100, n % 100) for n in range(100_000))
    path.write_bytes(gzip.compress(text))
    assert path.stat().st_size < len(text) / 4
    assert b"".join(READERS[reader](path)) == text


def test_a_zip_bomb_is_refused_before_a_byte_of_it_is_unpacked(tmp_path):
    path = tmp_path / "ml-25m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ml-25m/ratings.csv", b"\n" * (32 << 20))
    tracemalloc.start()
    try:
        with (
            pytest.raises(UserError, match="would unpack from"),
            extracted(path, "ratings.csv", tmp_path / "out"),
        ):
            pytest.fail("unpacked")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert list((tmp_path / "out").iterdir()) == []
