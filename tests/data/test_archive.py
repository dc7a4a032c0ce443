"""Archives from elsewhere: the wanted file comes out, and everything hostile is refused."""

import contextlib
import errno
import gzip
import stat
import zipfile
import zlib

import numpy as np
import pytest

from shielded_recrl.data import archive
from shielded_recrl.data.archive import byte_lines, extracted
from shielded_recrl.errors import UserError

ROWS = b"userId,movieId,rating,timestamp\n" + b"".join(b"%d,7,4.0,9\n" % n for n in range(5000))


def packed(path, *entries, method=zipfile.ZIP_DEFLATED):
    """A zip of (name, bytes, mode) entries."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content, *mode in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = (mode[0] if mode else stat.S_IFREG | 0o644) << 16
            file.writestr(info, content)
    return path


def refusal(path, folder):
    """The one line that refuses an archive; nothing is left behind."""
    with pytest.raises(UserError) as raised, extracted(path, "ratings.csv", folder):
        pytest.fail("extracted")
    assert list(folder.iterdir()) == []
    message = str(raised.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def patched(path, offset_of, offset, value):
    """Overwrite bytes at `offset` behind the last place where `offset_of` stands."""
    content = bytearray(path.read_bytes())
    start = content.rindex(offset_of) + offset
    content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_file_is_there_inside_the_block_alone(tmp_path, folder, method):
    path = packed(
        tmp_path / "a.zip",
        ("ml-25m/", b"", stat.S_IFDIR | 0o755),
        ("ml-25m/ratings.csv", ROWS),
        ("ml-25m/tags.csv", b"x"),
        method=method,
    )
    with extracted(path, "ratings.csv", folder) as file:
        assert folder in file.parents
        assert file.name == "ratings.csv"
        assert file.read_bytes() == ROWS
        assert [p.name for p in file.parent.iterdir()] == ["ratings.csv"]
    assert list(folder.iterdir()) == []


def test_the_file_goes_when_its_reader_fails(tmp_path, folder):
    path = packed(tmp_path / "a.zip", ("ratings.csv", ROWS))
    with pytest.raises(KeyError), extracted(path, "ratings.csv", folder):
        raise KeyError
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([("/etc/ratings.csv", ROWS)], "leads outside"),
        ([("../ratings.csv", ROWS)], "leads outside"),
        ([("ok/ratings.csv", ROWS), ("a/../../passwd", b"")], "leads outside"),
        ([("..\\ratings.csv", ROWS)], "leads outside"),
        ([("C:\\ratings.csv", ROWS)], "leads outside"),
        ([("ratings.csv", b"/etc/passwd", stat.S_IFLNK | 0o777)], "is a link"),
        ([("ratings.csv", ROWS), ("x", b"/etc", stat.S_IFLNK | 0o777)], "is a link"),
        ([("ratings.csv", b"", stat.S_IFIFO | 0o644)], "is a link or a device"),
        ([("movies.csv", ROWS)], "0 files called ratings.csv"),
        ([("ratings.csv/", b"")], "0 files called ratings.csv"),
        ([("a/ratings.csv", ROWS), ("b/ratings.csv", ROWS)], "2 files called ratings.csv"),
        ([("ratings.csv", bytes(5_000_000))], "more than 200 to 1"),
    ],
)
def test_hostile_archive(tmp_path, folder, entries, says):
    assert says in refusal(packed(tmp_path / "a.zip", *entries), folder)
    assert {found.name for found in tmp_path.iterdir()} == {"a.zip", "out"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice(tmp_path, folder):
    path = packed(tmp_path / "a.zip", ("ratings.csv", ROWS), ("ratings.csv", b"other"))
    assert "2 files called" in refusal(path, folder)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unbounded_decompressors(tmp_path, folder, method):
    path = packed(tmp_path / "a.zip", ("ratings.csv", ROWS), method=method)
    assert "neither stored nor deflated" in refusal(path, folder)


def test_encrypted(tmp_path, folder):
    path = packed(tmp_path / "a.zip", ("ratings.csv", ROWS))
    patched(path, b"PK\x01\x02", 8, b"\x01")
    assert "is encrypted" in refusal(path, folder)


@pytest.mark.parametrize("declared", [len(ROWS) - 1, len(ROWS) + 1, 10, 3 * len(ROWS)])
def test_declared_size_is_a_lie(tmp_path, folder, declared):
    path = packed(tmp_path / "a.zip", ("ratings.csv", ROWS))
    patched(path, b"PK\x01\x02", 24, declared.to_bytes(4, "little"))
    assert "damaged zip file" in refusal(path, folder)


def test_a_bomb_that_declares_little_writes_no_more_than_that(tmp_path, folder, monkeypatch):
    written = []
    real = archive.shutil.copyfileobj

    def copy(source, target, length):
        real(source, target, length)
        written.append(target.tell())

    monkeypatch.setattr(archive.shutil, "copyfileobj", copy)
    bomb = bytes(50_000_000)
    path = packed(tmp_path / "a.zip", ("ratings.csv", bomb))
    # Even the checksum is that of the bytes it admits to.
    patched(path, b"PK\x01\x02", 16, zlib.crc32(bytes(1000)).to_bytes(4, "little"))
    patched(path, b"PK\x01\x02", 24, (1000).to_bytes(4, "little"))
    with extracted(path, "ratings.csv", folder) as file:
        assert file.stat().st_size == 1000
    assert written == [1000]


def test_over_the_total(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBER", len(ROWS) - 1)
    assert "would unpack" in refusal(packed(tmp_path / "a.zip", ("ratings.csv", ROWS)), folder)


def test_flipped_byte(tmp_path, folder):
    path = packed(tmp_path / "a.zip", ("ratings.csv", ROWS), method=zipfile.ZIP_STORED)
    patched(path, b"4999,7", 0, b"5")
    assert "Bad CRC-32" in refusal(path, folder)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated(tmp_path, folder, kept):
    path = packed(tmp_path / "a.zip", ("ratings.csv", ROWS))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    assert "damaged zip file" in refusal(path, folder)


@pytest.mark.parametrize(
    ("mark", "offset", "value"),
    [
        # A name that is no UTF-8, though its flag says so.
        (b"PK\x01\x02", 8, b"\x00\x08" + bytes(36) + b"\xff"),
        # A directory that starts before the file does.
        (b"PK\x05\x06", 12, b"\xff\xff\xff\x00"),
        # An entry that starts behind the end.
        (b"PK\x01\x02", 42, b"\xff\xff\xff\x7f"),
    ],
)
def test_damaged_directory(tmp_path, folder, mark, offset, value):
    path = patched(packed(tmp_path / "a.zip", ("ratings.csv", ROWS)), mark, offset, value)
    assert str(path) in refusal(path, folder)


def test_random_damage_is_refused_or_does_no_harm(tmp_path, folder):
    whole = packed(tmp_path / "a.zip", ("ml/ratings.csv", ROWS), ("ml/x", b"hi")).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(len(whole) - 300, len(whole), size=2):
            damaged[place] = random.integers(256)
        (tmp_path / "a.zip").write_bytes(damaged)
        with (
            contextlib.suppress(UserError),
            extracted(tmp_path / "a.zip", "ratings.csv", folder) as file,
        ):
            assert file.read_bytes() == ROWS


def test_a_full_disk_is_no_damage(tmp_path, folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive.shutil, "copyfileobj", full)
    path = packed(tmp_path / "a.zip", ("ratings.csv", ROWS))
    with pytest.raises(UserError, match="no space left"), extracted(path, "ratings.csv", folder):
        pytest.fail("extracted")


def test_lines_of_gzip_and_plain_files(tmp_path):
    expected = [b"a\n", b"\n", b"\xff\xfe\r\n", b"no end"]
    (tmp_path / "plain").write_bytes(b"".join(expected))
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"a\n") + gzip.compress(b"".join(expected[1:])))
    assert list(byte_lines(tmp_path / "plain")) == expected
    assert list(byte_lines(tmp_path / "a.gz")) == expected


def test_endless_line(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_LINE", 1 << 20)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"fine\n" + bytes(3 << 20)))
    with pytest.raises(UserError, match=r"a\.gz, line 2: longer than 1 MiB"):
        list(byte_lines(path))


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_damaged_gzip(tmp_path, damage):
    path = tmp_path / "a.gz"
    content = bytearray(gzip.compress(ROWS))
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(
        {"cut": gzip.compress(ROWS)[:-20], "flipped": content, "not gzip": ROWS}[damage]
    )
    with pytest.raises(UserError, match="damaged gzip file"):
        list(byte_lines(path))
