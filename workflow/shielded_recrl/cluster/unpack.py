"""Restore archives of finished work, so that nothing in them runs again.

In: archives of `cluster pack`, and a clone of the repository. Out: their outputs, logs and benchmarks
below `results/`, with the times they had, and Snakemake's records of them below `.snakemake`. An
archive is checked to its end before anything is written, and each output is put into its place whole.

Snakemake goes by times, and those of a clone are later than those of the results. So inputs that do
not travel get the time that they had where the archive was packed, if they are the same and newer; those
that differ get the present time, so that what was made from the others is made again, and nothing else.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from shielded_recrl.cluster.archive import (
    RESULTS,
    Archive,
    File,
    Input,
    clock,
    content,
    files_of,
    opened,
    progress,
)
from shielded_recrl.cluster.records import mark_unfinished, require_idle, write_record
from shielded_recrl.errors import UserError
from shielded_recrl.files import atomic, sha256
from shielded_recrl.report.manifest import is_inside


def main(
    archives: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    overwrite: bool = False,
    folder: Path = Path("."),
) -> None:
    """Restore archives of finished work, so that nothing in them runs again.

    Args:
        archives: files that `pack` wrote, such as packs/books.tar.
        overwrite: whether files that are there and differ are replaced.
        folder: where Snakemake is to run: a clone of the same commit.

    Raises:
        UserError: Snakemake runs there, an archive is damaged, files that differ are in the way, or
            the disk is too small.
    """
    if not archives:
        raise UserError("give the archives to restore, such as packs/books.tar")
    require_idle(folder)
    told: dict[str, None] = {}
    for path in archives:
        with opened(path) as archive:
            archive.verify()
            missing = place(archive, folder, overwrite)
            manifest = archive.manifest
        print(
            f"{path}: {len(manifest.outputs)} outputs, {len(manifest.files)} files; "
            f"{len(manifest.files) - missing} were there already"
        )
        told |= dict.fromkeys(settle(folder, manifest.inputs))
        ahead = max((file.mtime_ns for file in manifest.files), default=0) - time.time_ns()
        if ahead > 0:
            told[
                f"{path}: made {ahead / 10**9:.0f} s from now by the clock of this machine; set the "
                "clock, or what is made from it will count as older"
            ] = None
    for line in told:
        print(f"warning: {line}")
    print("next: `snakemake -n` with the config of these results lists what is left to do")


def place(archive: Archive, folder: Path, overwrite: bool = False) -> int:
    """Put what an archive holds into its place, and return how many files were not there.

    Args:
        archive: verified.
        folder: where `results/` lies, or will.
        overwrite: whether what differs is replaced.

    Raises:
        UserError: what is there differs, and is not to be replaced; or the disk is too small.
    """
    units = archive.manifest.units
    same = {path for path, files in units.items() if is_same(folder, path, files)}
    other = [path for path in units if path not in same and os.path.lexists(folder / path)]
    if other and not overwrite:
        more = f", as {len(other) - 1} more of its files and folders do" if len(other) > 1 else ""
        raise UserError(
            f"{folder / other[0]}: differs from the one in {archive.path}{more}; move the results "
            "away, or replace what differs by --overwrite True"
        )
    wanted = {path: files for path, files in units.items() if path not in same}
    size = sum(file.size for files in wanted.values() for file in files)
    results = folder / RESULTS
    if size > (free := shutil.disk_usage(results if results.exists() else folder).free):
        raise UserError(
            f"{results}: {size / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free; make "
            "room, or link the folder to a larger disk"
        )
    with progress(archive.path.name, size) as bar:
        for path, files in units.items():
            record = archive.manifest.outputs.get(path)
            if path in same:
                for file in files:
                    os.utime(folder / file.path, ns=(file.mtime_ns, file.mtime_ns))
            else:
                with atomic(folder / path) as partial:
                    for file in files:
                        target = partial / Path(file.path).relative_to(path)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        archive.unpack(file, target, bar)
                    if record is not None:
                        mark_unfinished(folder, path)
                    if (folder / path).is_symlink():
                        (folder / path).unlink()
            if record is not None:
                write_record(folder, path, record)
    return sum(map(len, wanted.values()))


def is_same(folder: Path, path: str, files: list[File]) -> bool:
    """Whether an output, or a file that is part of none, is there and has these bytes."""
    if not os.path.lexists(folder / path):
        return False
    found = {file.relative_to(folder).as_posix(): file for file in files_of(folder / path)}
    return found.keys() == {file.path for file in files} and all(
        stat.S_ISREG(found[file.path].lstat().st_mode)
        and found[file.path].stat().st_size == file.size
        and sha256(found[file.path]) == file.sha256
        for file in files
    )


def settle(folder: Path, inputs: tuple[Input, ...]) -> Iterator[str]:
    """Give inputs the times by which Snakemake sees whether they are those of the results.

    Only files in the folder are looked at, whatever an archive names.

    Yields:
        What is to be told: the inputs that are missing, differ, or lie elsewhere.
    """
    for one in inputs:
        path = folder / one.path
        if not is_inside(one.path) or one.path.startswith((RESULTS, ".")):
            yield (
                f"{one.path}: read from outside of this folder, and not looked at; keep the same "
                "file there, with its time"
            )
        elif not path.exists():
            yield f"{path}: not here; when it is, unpack again before the next run"
        elif content(path) != one.sha256:
            os.utime(clock(path))
            yield f"{path}: not the one that these results were made from; what reads it runs again"
        else:
            # Archives of several machines may list it: the earliest time serves all of them.
            mtime_ns = min(clock(path).stat().st_mtime_ns, one.mtime_ns)
            os.utime(clock(path), ns=(mtime_ns, mtime_ns))
