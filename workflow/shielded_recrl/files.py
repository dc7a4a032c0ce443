"""Reading and writing files: every write goes to a temporary name and is renamed when whole.

Parquet and safetensors hold numbers that read well after a bit has flipped. So they are sealed: the
file's own metadata hold a SHA-256, that of the file as it is with zeros in place of these 64 digits.
Writing it moves no byte, other readers pass over it, and no second file can get lost. Of a model's
folder the weights also hold the digests of the JSON documents beside them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from shielded_recrl.errors import UserError

ZEROS = "0" * 64
# Metadata of a parquet file that is yet to be sealed.
SEAL = {"seal": f"sha256:{ZEROS}"}
# Metadata of weights: name -> digest of the documents of their folder.
BESIDE = "beside"
# Key and value, as the header of safetensors (JSON) and the footer of parquet (Thrift) have them.
SEALED = re.compile(rb'seal(?:":"|\x18\x47)sha256:(.{64})', re.DOTALL)
# What safetensors takes as the longest header; a damaged file may claim any length.
MAX_HEADER = 100_000_000
CHUNK = 1 << 20
# Where Snakemake keeps the copies that a job works on, and where all that is copied begins.
COPIES, TOPS = ".snakemake", ("results", "resources")
# The owner of what is being written, and its process.
PARTIAL = re.compile(r"\.([A-Za-z0-9_]+-(\d+)-\d+)-[0-9a-f]{8}\.partial")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    Works for a file and for a folder. On failure nothing is left behind; a full disk becomes
    a `UserError`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{_owner()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
    except Exception as error:
        # polars and safetensors wrap the system's error in their own.
        if os.strerror(errno.ENOSPC) in str(error):
            raise UserError(
                f"{path}: no space left on the disk; free some or put the folder on a larger one"
            ) from error
        raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


@contextmanager
def sealed(path: Path) -> Iterator[Path]:
    """As `atomic`, for a parquet or safetensors file or a folder with such: sealed when whole.

    A parquet file is to be written with the metadata `SEAL`.
    """
    with atomic(path) as partial:
        yield partial
        seal(partial)


def seal(path: Path) -> None:
    """Write into a parquet or safetensors file, or into the weights of a folder, its checksum."""
    if path.is_dir():
        for file in sorted(path.rglob("*.safetensors")):
            beside = {other.name: sha256(other) for other in file.parent.glob("*.json")}
            _add_metadata(file, SEAL | {BESIDE: json.dumps(beside, sort_keys=True)})
            _fill_in_seal(file)
        return
    with path.open("rb") as stream:
        parquet = stream.read(4) == b"PAR1"
    if not parquet:
        _add_metadata(path, SEAL)
    _fill_in_seal(path)


def _fill_in_seal(path: Path) -> None:
    with path.open("r+b") as stream:
        place = _place_of_seal(stream)
        if place is None:
            raise ValueError(f"{path}: no safetensors, and no parquet with the metadata SEAL")
        digits = _digest_without(stream, place)
        stream.seek(place)
        stream.write(digits.encode())


def intact(path: Path) -> Path:
    """`path` as it is, once the seal of its file, or of each file in the folder, is compared.

    A file without a seal is somebody else's and passes; so does a path with nothing there, since its
    reader knows best what is missing.

    Raises:
        UserError: the bytes of a sealed file are not those that were written.
    """
    path = Path(path)
    if not path.is_dir():
        if path.is_file() and seal_holds(path) is False:
            raise _damaged(path, "it")
        return path
    for file in sorted(path.rglob("*.safetensors")):
        holds = seal_holds(file)
        if holds is False:
            raise _damaged(file, path)
        if holds:
            for name, digest in json.loads(_metadata(file).get(BESIDE, "{}")).items():
                beside = file.parent / name
                if not beside.is_file() or sha256(beside) != digest:
                    raise _damaged(beside, path)
    return path


def _damaged(path: Path, what: str | Path) -> UserError:
    return UserError(
        f"{path}: damaged (its bytes do not match the checksum it was written with); "
        f"delete {what} and run again"
    )


def seal_holds(path: Path) -> bool | None:
    """Whether a file is as it was sealed; None where it has no seal."""
    with path.open("rb") as stream:
        place = _place_of_seal(stream)
        if place is None:
            return None
        stream.seek(place)
        return stream.read(len(ZEROS)) == _digest_without(stream, place).encode()


def _place_of_seal(stream: BinaryIO) -> int | None:
    """Where the digits are: near the start of a safetensors file, near the end of a parquet file."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start, length = 8, int.from_bytes(stream.read(8), "little")
    stream.seek(max(0, size - 8))
    tail = stream.read(8)
    if tail.endswith(b"PAR1"):
        length = int.from_bytes(tail[:4], "little")
        start = size - 8 - length
    if start < 0 or start + length > size or length > MAX_HEADER:
        return None
    stream.seek(start)
    # The last: before it, a parquet file may hold texts, as the extremes of a column.
    places = [match.start(1) for match in SEALED.finditer(stream.read(length))]
    return start + places[-1] if places else None


def _digest_without(stream: BinaryIO, place: int) -> str:
    """Digest of a file as it is with zeros at this place."""
    digest = hashlib.sha256()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    while block := stream.read(min(CHUNK, place - stream.tell())):
        digest.update(block)
    digest.update(ZEROS.encode())
    stream.seek(place + len(ZEROS))
    while block := stream.read(min(CHUNK, size - stream.tell())):
        digest.update(block)
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file."""
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return header.get("__metadata__", {})


def _add_metadata(path: Path, more: Mapping[str, str]) -> None:
    """Add to the metadata of a safetensors file.

    They are sorted: safetensors writes them in an order that differs from run to run.
    """
    again = path.with_name(f"{path.name}.sealing")
    try:
        with path.open("rb") as old, again.open("wb") as new:
            header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
            metadata = header.pop("__metadata__", {}) | more
            header = {"__metadata__": dict(sorted(metadata.items())), **header}
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            # Tensors begin at a multiple of 8.
            text += b" " * (-len(text) % 8)
            new.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(old, new, CHUNK)
        os.replace(again, path)
    finally:
        again.unlink(missing_ok=True)


def _owner(pid: int | None = None) -> str:
    """This machine, a process, and when it started: no two processes ever have the same.

    Raises:
        OSError: there is no such process.
    """
    pid = os.getpid() if pid is None else pid
    node = re.sub(r"[^A-Za-z0-9]", "_", os.uname().nodename)
    status = Path(f"/proc/{pid}/stat")
    # Field 22 of proc(5); the second, a name in brackets, may hold anything.
    began = status.read_text().rpartition(")")[2].split()[19] if Path("/proc/self").exists() else 0
    return f"{node}-{pid}-{began}"


def _lives(owner: str, pid: int) -> bool:
    """Whether an owner is still at work; of another machine nobody here can tell."""
    if not owner.startswith(_owner().split("-")[0] + "-"):
        return True
    try:
        return _owner(pid) == owner
    except OSError:
        return False


def remove_partial(folder: Path) -> None:
    """Delete what processes of this machine that were killed left half-written below a folder."""
    # A folder may go with the one it lies in.
    for path in sorted(Path(folder).rglob(".*.partial*")):
        owner = PARTIAL.search(path.name)
        if owner is None or _lives(owner[1], int(owner[2])):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def named(path: Path | str) -> str:
    """A path as results name it: a copy has the name of what it is a copy of.

    >>> named(".snakemake/storage/s3/bucket/folder/results/audit/audit.json")
    'results/audit/audit.json'
    >>> named("/home/me/results/audit/audit.json"), named("org/lm")
    ('/home/me/results/audit/audit.json', 'org/lm')
    """
    parts = Path(path).parts
    tops = [index for index, part in enumerate(parts) if part in TOPS]
    if COPIES not in parts or not tops:
        return str(path)
    return "/".join(parts[tops[-1] :])


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically, keys sorted, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON document; a damaged one raises `UserError`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run again") from error


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(
        path, "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows)
    )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; a damaged line raises `UserError` naming it."""
    rows = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); delete it and run again") from error
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error})") from error
    return rows


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, or of the names and bytes of all files below a folder.

    Hidden files are no content: Snakemake marks a folder with one when its job has ended.
    """
    path = Path(path)
    if path.is_dir():
        digest = hashlib.sha256()
        names = {file: file.relative_to(path) for file in path.rglob("*") if file.is_file()}
        for file, name in sorted(names.items()):
            if not any(part.startswith(".") for part in name.parts):
                digest.update(f"{name.as_posix()}\0{sha256(file)}\0".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
