"""Compressed raw files, read within bounds: one member of a zip, or the lines of a gzip file.

In: an archive from elsewhere, which may be damaged or hostile. Out: the one file that is wanted, on
disk for as long as it is read, or its lines one at a time. Nothing is ever written outside the
folder given, and neither disk nor memory can be filled by a small file that claims to be large.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

from tqdm import tqdm

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import atomic

# The largest member read here, ratings.csv of MovieLens-25M, has 0.7 GB.
MAX_MEMBER = 8 << 30
# Tables of numbers shrink to a tenth at best; deflate can reach 1/1032, and then hides a bomb.
MAX_RATIO = 200
# Bytes that a gzip file may unpack to, whatever its size.
FREE = 64 << 20
# The longest lines of the published files, whole books of reviews in one field, have under 1 MB.
MAX_LINE = 16 << 20
# Whose decompressors can be told how many bytes to make at most; those of bzip2 and lzma cannot.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1
ADVICE = "expected the archive as its owner publishes it"
# What zipfile raises where bytes are wrong: ValueError for names that are no text, OSError for
# places outside the file.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    ValueError,
)


class Unpacked:
    """Counts what comes out of a gzip or plain file, and gives up a bomb."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """
        Args:
            path: the file's name.
            file: the file as it lies on disk, which is read meanwhile.
        """
        self._path, self._file = path, file
        self._bytes, self._allowed = 0, FREE

    def add(self, count: int) -> None:
        """Count bytes that came out.

        Raises:
            UserError: they are more than `FREE` and than `MAX_RATIO` times those that were read.
        """
        self._bytes += count
        if self._bytes > self._allowed:
            read = self._file.tell()
            self._allowed = max(FREE, MAX_RATIO * read)
            if self._bytes > self._allowed:
                raise UserError(
                    f"{self._path}: unpacks from {read} to more than {self._bytes} bytes, more than "
                    f"{MAX_RATIO} to 1; {ADVICE}"
                )


@contextmanager
def extracted(path: Path, member: str, folder: Path) -> Iterator[Path]:
    """Unpack the one file called `member` into `folder`, and delete it afterwards.

    Args:
        path: a zip file.
        member: the file's name, without the folders it lies in.
        folder: where the unpacked file lives meanwhile; made if missing.

    Raises:
        UserError: the archive is damaged, its names lead outside, it holds links, `member` is
            missing, there twice, encrypted, or unpacks to more than the bounds of this module.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=folder) as inside:
        target = Path(inside, member)
        try:
            with zipfile.ZipFile(path) as archive:
                info = _member(path, archive, member)
                with atomic(target) as partial:
                    with archive.open(info) as packed, partial.open("wb") as unpacked:
                        # Stops at the declared size, and checks the CRC of what it read.
                        shutil.copyfileobj(packed, unpacked, 1 << 20)
                    size = partial.stat().st_size
                    if size != info.file_size:
                        raise zipfile.BadZipFile(
                            f"{member} has {size} bytes, not the {info.file_size} announced"
                        )
        except DAMAGED as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise UserError(
                f"{path}: damaged zip file ({first_line(error)}); fetch it again"
            ) from None
        yield target


def byte_lines(path: Path) -> Iterator[bytes]:
    """Lines of a gzip (`.gz`) or plain file, blank ones too, each with its line end.

    A byte order mark before the first line is left out.

    Raises:
        UserError: no gzip file where the name says so, a truncated one or a bomb, or a line longer
            than `MAX_LINE`.
    """
    with (
        path.open("rb") as file,
        gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else nullcontext(file) as stream,
        tqdm(
            total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=None
        ) as bar,
    ):
        number = 0
        unpacked = Unpacked(path, file)
        try:
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                unpacked.add(len(line))
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if len(line) > MAX_LINE:
                    raise UserError(
                        f"{path}, line {number}: longer than {MAX_LINE >> 20} MiB; expected one "
                        "row a line: the file is damaged, fetch it again"
                    )
                if number % 10_000 == 0:
                    bar.update(file.tell() - bar.n)
                yield line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{path}, after line {number}: damaged gzip file ({first_line(error)}); "
                "fetch it again"
            ) from None


def _member(path: Path, archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    """The entry of `member` in an archive whose directory promises nothing hostile."""
    found = []
    for info in archive.infolist():
        # Reads both kinds of slashes, and drives.
        name = PureWindowsPath(info.filename)
        if name.anchor or ".." in name.parts:
            raise UserError(f"{path}: the entry {info.filename!r} leads outside; {ADVICE}")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(
                f"{path}: the entry {info.filename!r} is a link or a device, no file; {ADVICE}"
            )
        if name.name == member and not info.is_dir():
            found.append(info)
    if len(found) != 1:
        raise UserError(f"{path}: {len(found)} files called {member} inside, not one; {ADVICE}")
    (info,) = found
    if info.flag_bits & ENCRYPTED:
        raise UserError(f"{path}: {member} is encrypted; {ADVICE}")
    if info.compress_type not in METHODS:
        raise UserError(f"{path}: {member} is neither stored nor deflated; {ADVICE}")
    if info.file_size > min(MAX_MEMBER, MAX_RATIO * max(info.compress_size, 1)):
        raise UserError(
            f"{path}: {member} would unpack from {info.compress_size} to {info.file_size} bytes, "
            f"more than {MAX_RATIO} to 1 or {MAX_MEMBER >> 30} GiB; {ADVICE}"
        )
    return info
