"""Snakemake's own notes on outputs: what made them, which are unfinished, and whether it runs.

In: a folder in which Snakemake has run. Out: its records, read and written as its file backend keeps
them. The record of an output is a JSON file below `.snakemake/metadata`, named by the base64 of the
output's path; what is too long for a name goes into folders that begin with `@`. A file of the same
name below `.snakemake/incomplete` says that the job behind the output has not ended.
"""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json

METADATA, INCOMPLETE, LOCKS = (f".snakemake/{name}" for name in ("metadata", "incomplete", "locks"))


def require_idle(folder: Path) -> None:
    """Refuse a folder in which Snakemake runs.

    Raises:
        UserError: there is a lock, also that of a run which was killed.
    """
    if any((folder / LOCKS).glob("*.lock")):
        raise UserError(
            f"{folder / LOCKS}: Snakemake runs here; wait for it to end, or, if it was killed, "
            "run `snakemake --unlock`"
        )


def note_path(notes: Path, output: str) -> Path:
    """Where the note on an output lies.

    Args:
        notes: the existing folder of such notes.
        output: path of the output, relative to the folder of the study.
    """
    longest = os.pathconf(notes, "PC_NAME_MAX") - 1
    name = urlsafe_b64encode(output.encode()).decode()
    pieces = [name[start : start + longest] for start in range(0, len(name), longest)]
    return notes.joinpath(*(f"@{piece}" for piece in pieces[:-1]), pieces[-1])


def noted(notes: Path) -> dict[str, Path]:
    """The outputs that have a note, by path, and where the notes lie."""
    found = {}
    for file in (path for path in notes.rglob("*") if path.is_file()):
        name = "".join(part.removeprefix("@") for part in file.relative_to(notes).parts)
        try:
            output = urlsafe_b64decode(name).decode()
        except ValueError:
            continue
        # Files of other programs may decode, too, but not to what would be called like them.
        if output and note_path(notes, output) == file:
            found[output] = file
    return dict(sorted(found.items()))


def read_record(note: Path) -> dict[str, Any]:
    """The record of an output.

    Raises:
        UserError: the file is damaged.
    """
    record = read_json(note)
    lists = isinstance(record, dict) and (record.get("input"), record.get("log"))
    if not lists or not all(isinstance(one, list) for one in lists):
        raise UserError(f"{note}: no record of a finished job; delete it and run again")
    return record


def mark_unfinished(folder: Path, output: str) -> None:
    """Say that an output is not what its record is about: a run then makes it again."""
    _write(folder, INCOMPLETE, output, {"external_jobid": None})


def write_record(folder: Path, output: str, record: dict[str, Any]) -> None:
    """Write the record of an output that is in its place; it counts as finished from then on."""
    _write(folder, METADATA, output, record)
    (folder / INCOMPLETE).mkdir(exist_ok=True)
    note_path(folder / INCOMPLETE, output).unlink(missing_ok=True)


def _write(folder: Path, notes: str, output: str, document: dict[str, Any]) -> None:
    """Write a note, in place: its name may be too long for a temporary one beside it."""
    (folder / notes).mkdir(parents=True, exist_ok=True)
    path = note_path(folder / notes, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
