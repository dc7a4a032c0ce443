"""The archive in which finished work travels: a plain tar that says first what it holds.

In: files below `results/`, and what Snakemake knows of them. Out: a tar, and the same files again.
The first member, `manifest-{its SHA-256}.json`, lists every other member in order, with size, time
and SHA-256; beside them it holds Snakemake's records and the inputs that do not travel. Nothing is
compressed: parquet files are already, weights cannot be, and so an archive is never smaller than what
it unpacks to.

An archive may be damaged or hostile. What differs from its manifest is refused, and so is a manifest
that names anything but files below `results/`: no links, no devices, no way out of the folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Annotated, BinaryIO, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationError, model_validator
from tqdm import tqdm

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import atomic, sha256
from shielded_recrl.report.manifest import is_inside
from shielded_recrl.settings import Strict, one_line

FORMAT = 1
RESULTS = "results/"
MANIFEST = re.compile(r"manifest-([0-9a-f]{64})\.json")
# A file takes some two kilobytes of it, its record most of them: room for thirty thousand.
MAX_MANIFEST = 64 << 20
PIECE = 1 << 20
# What tarfile raises where bytes are wrong: headers that follow each other without end, numbers and
# names that are none.
DAMAGED = (tarfile.TarError, RecursionError, ValueError, ArithmeticError)


def _printable(path: str) -> str:
    if not path.isprintable():
        raise ValueError(f"{path!r} cannot be printed")
    return path


Printable = Annotated[str, AfterValidator(_printable)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Later than the year 2200, and still a time that every system can set.
Time = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


class File(Strict):
    """A file that travels."""

    path: Printable
    size: Annotated[int, Field(strict=True, ge=0)]
    mtime_ns: Time
    sha256: Digest


class Input(Strict):
    """A file or folder that was read and does not travel: it has to be there, too."""

    path: Printable
    mtime_ns: Time
    sha256: Digest


class Manifest(Strict):
    """What an archive holds.

    Attributes:
        part: a dataset, or `study` for what belongs to no single one.
        files: in the order of the archive, which is that of their paths.
        outputs: outputs of rules, files or folders of them -> Snakemake's record.
        inputs: what these were made from that is not below `results/`.
    """

    format: Literal[1] = FORMAT
    part: Annotated[str, Field(pattern=r"^[a-z0-9]+$")]
    files: tuple[File, ...]
    outputs: dict[str, dict[str, JsonValue]]
    inputs: tuple[Input, ...]

    @model_validator(mode="after")
    def _names_results_alone(self) -> Manifest:
        paths = [file.path for file in self.files]
        for path in paths:
            if not (path.startswith(RESULTS) and is_inside(path)):
                raise ValueError(f"{path!r} is no path of a file below {RESULTS}")
        if any(first >= second for first, second in pairwise(paths)):
            raise ValueError("files are not in the order of their paths, each once")
        folders = {parent for path in paths for parent in parents(path)}
        if both := folders.intersection(paths):
            raise ValueError(f"{min(both)!r} is a file and a folder")
        if unknown := self.outputs.keys() - folders.union(paths):
            raise ValueError(f"the output {min(unknown)!r} has no file")
        return self

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def units(self) -> dict[str, list[File]]:
        """What is put into its place at once: each output, and each file that is part of none."""
        found: dict[str, list[File]] = {}
        for file in self.files:
            above = (path for path in parents(file.path) if path in self.outputs)
            found.setdefault(next(above, file.path), []).append(file)
        return found


def parents(path: str) -> list[str]:
    """The folders that a file below the results lies in, outermost first.

    >>> parents("results/data/books/items.parquet")
    ['results/data', 'results/data/books']
    """
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(2, len(parts))]


def files_of(path: Path) -> list[Path]:
    """A file itself, or everything below a folder that is no folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return [path]
    found = []
    for folder, folders, files in os.walk(path):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        found += [Path(folder, name) for name in files + links]
    return sorted(found)


def content(path: Path) -> str:
    """Digest of an input: of a file's bytes, or of names and bytes below a folder.

    Hidden files do not count: there Snakemake and the hub's client write when it was made.
    """
    if not path.is_dir():
        return sha256(path)
    digest = hashlib.sha256()
    for file in files_of(path):
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{sha256(file)}\0".encode())
    return digest.hexdigest()


def clock(path: Path) -> Path:
    """The file whose time Snakemake takes for that of an input: a folder may have one inside."""
    inside = path / ".snakemake_timestamp"
    return inside if inside.exists() else path


class _Hashed:
    """Bytes of a stream, whose digest and progress are taken as they are read."""

    def __init__(self, stream: IO[bytes], bar: tqdm):
        self.stream = stream
        self.bar = bar
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        piece = self.stream.read(size)
        self.digest.update(piece)
        self.bar.update(len(piece))
        return piece


class _Bounded:
    """A file in which no header can ask for more memory than a piece takes."""

    def __init__(self, stream: BinaryIO):
        self.name = stream.name
        self.seek, self.tell = stream.seek, stream.tell
        self._read = stream.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= PIECE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._read(size)


def write(path: Path, manifest: Manifest, folder: Path) -> None:
    """Write an archive; shows progress on a terminal.

    Args:
        path: the archive; replaced when the new one is whole.
        manifest: what goes in.
        folder: where `results/` lies.

    Raises:
        UserError: a file is no longer as the manifest says, there are too many, or the disk is full.
    """
    document = manifest.model_dump_json().encode()
    if len(document) > MAX_MANIFEST:
        raise UserError(
            f"{path}: {len(manifest.files)} files are too many for one archive; pack fewer of them"
        )
    name = f"manifest-{hashlib.sha256(document).hexdigest()}.json"
    with (
        atomic(path) as partial,
        tarfile.open(partial, "w", format=tarfile.PAX_FORMAT, copybufsize=PIECE) as tar,
        progress(path.name, manifest.size) as bar,
    ):
        tar.addfile(_header(name, len(document)), io.BytesIO(document))
        for file in manifest.files:
            with (folder / file.path).open("rb") as stream:
                source = _Hashed(stream, bar)
                try:
                    tar.addfile(_header(file.path, file.size, file.mtime_ns), source)
                    changed = source.digest.hexdigest() != file.sha256
                except OSError as error:
                    # What tarfile says of a file that ends early; errors of the system have a number.
                    if error.errno is not None:
                        raise
                    changed = True
            if changed:
                raise UserError(
                    f"{folder / file.path}: changed while it was packed; wait until nothing writes "
                    "there and pack again"
                )


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an archive, and hold its members against its manifest without reading them.

    Raises:
        UserError: it is damaged, or holds what its manifest does not list.
    """
    with path.open("rb") as stream:
        try:
            archive = Archive(path, tarfile.TarFile(fileobj=_Bounded(stream)))
        except DAMAGED as error:
            raise damaged(path, first_line(error)) from None
        yield archive


def damaged(path: Path, reason: str) -> UserError:
    """The one line that refuses an archive, whatever the reason quotes from it."""
    reason = reason if reason.isprintable() else ascii(reason)
    return UserError(f"{path}: damaged archive ({reason}); fetch or pack it again")


class Archive:
    """An opened archive whose members are those of its manifest; see `opened`.

    Attributes:
        path: the file.
        manifest: what it holds.
    """

    def __init__(self, path: Path, tar: tarfile.TarFile):
        self.path = path
        self._tar = tar
        self.manifest = self._manifest(tar.next())
        if self.manifest.size > path.stat().st_size:
            raise self._damaged("it lists more bytes than it has")
        self._members = {file.path: self._member(tar.next(), file) for file in self.manifest.files}
        if tar.next() is not None:
            raise self._damaged("it holds more than its manifest lists")

    def verify(self) -> None:
        """Read everything once; shows progress on a terminal.

        Raises:
            UserError: a file is not as the manifest says.
        """
        with progress(f"checking {self.path.name}", self.manifest.size) as bar:
            for file in self.manifest.files:
                with self._reading(file, bar) as source:
                    while source.read(PIECE):
                        pass

    def unpack(self, file: File, target: Path, bar: tqdm) -> None:
        """Write one file, with its time.

        Raises:
            UserError: it is not as the manifest says.
        """
        with self._reading(file, bar) as source, target.open("xb") as written:
            shutil.copyfileobj(source, written, PIECE)
        os.utime(target, ns=(file.mtime_ns, file.mtime_ns))

    @contextmanager
    def _reading(self, file: File, bar: tqdm) -> Iterator[_Hashed]:
        source = _Hashed(self._tar.extractfile(self._members[file.path]), bar)
        try:
            yield source
        except DAMAGED as error:
            raise self._damaged(first_line(error)) from None
        if source.digest.hexdigest() != file.sha256:
            raise self._damaged(f"{file.path} is not the file that was packed")

    def _damaged(self, reason: str) -> UserError:
        return damaged(self.path, reason)

    def _manifest(self, info: tarfile.TarInfo | None) -> Manifest:
        name = MANIFEST.fullmatch(info.name) if info else None
        if name is None or not _is_plain(info) or info.size > MAX_MANIFEST:
            raise self._damaged("it does not begin with a manifest")
        stream = self._tar.extractfile(info)
        document = b"".join(iter(lambda: stream.read(PIECE), b""))
        if hashlib.sha256(document).hexdigest() != name[1]:
            raise self._damaged("its manifest is not the one that was packed")
        try:
            return Manifest.model_validate_json(document)
        except ValidationError as error:
            raise self._damaged(one_line(error, "manifest")) from None

    def _member(self, info: tarfile.TarInfo | None, file: File) -> tarfile.TarInfo:
        if info is None:
            raise self._damaged(f"it ends before {file.path}")
        if (info.name, info.size) != (file.path, file.size):
            raise self._damaged(f"{file.path} is not where, or not as large as, the manifest says")
        if not _is_plain(info):
            raise self._damaged(f"{file.path} is no plain file")
        return info


def progress(name: str, size: int) -> tqdm:
    """A bar that counts bytes, on a terminal alone."""
    return tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=None)


def _header(name: str, size: int, mtime_ns: int = 0) -> tarfile.TarInfo:
    """A member without owner, so that equal files give equal archives."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mtime = mtime_ns // 10**9
    return info


def _is_plain(info: tarfile.TarInfo) -> bool:
    return info.type == tarfile.REGTYPE and not info.issparse()
