"""Check a folder of results against its manifest.

    python -m shielded_recrl.report.verify results

In: manifest.json and the files it lists; the same of the dialogue branch. Out: one line for each file
that is missing, changed or not listed, and exit status 1; or the number of files verified. The verdict
of the audit gate, which no manifest lists, has to be about the summary that is listed. What no manifest
covers, the HTML report and what has not run to its end, is named by a line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json
from shielded_recrl.report.manifest import (
    FORMAT,
    JUDGED,
    REPORT,
    VERDICT,
    artefact_paths,
    digest_all,
    is_inside,
)

NAME = "manifest.json"
# The dialogue branch, which runs apart, and its manifest, below the folder of results.
BRANCH, BRANCH_MANIFEST = "dialogue", "dialogue/report/manifest.json"
DIGEST = re.compile("[0-9a-f]{64}")


def main(results: Annotated[Path, tyro.conf.Positional], manifest: Path | None = None) -> None:
    """Check a folder of results against its manifest.

    Args:
        results: folder of results.
        manifest: its manifest; by default manifest.json in the folder, and that of the dialogue branch.
    """
    folders = manifests(results) if manifest is None else {results: manifest}
    listed = {folder: read_manifest(path) for folder, path in folders.items()}
    for name in uncovered(results, folders):
        print(f"not covered: {name}")
    wrong = []
    for folder, path in folders.items():
        problems, count = check(folder, listed[folder], path), len(listed[folder])
        for problem in problems:
            print(problem if folder == results else f"{folder.name}/{problem}")
        if problems:
            wrong.append(f"{folder}: problems: {len(problems)}; files listed in {path}: {count}")
        else:
            print(f"{folder}: {count} files verified")
    if wrong:
        sys.exit("\n".join(wrong))


def manifests(results: Path) -> dict[Path, Path]:
    """Folder -> manifest: of the study and of the dialogue branch, those that are there.

    Where neither is, that of the study.
    """
    expected = {results: results / NAME, results / BRANCH: results / BRANCH_MANIFEST}
    there = {folder: path for folder, path in expected.items() if path.is_file()}
    return there or {results: results / NAME}


def uncovered(results: Path, folders: Mapping[Path, Path]) -> list[str]:
    """What no manifest of these speaks of: the HTML report, and what has none.

    Args:
        results: the folder.
        folders: folder -> manifest, see `manifests`.
    """
    names = [REPORT] * (results / REPORT).exists()
    if results not in folders and artefact_paths(results, results / NAME):
        names.append(f"the study, which has no {NAME}")
    branch = results / BRANCH
    if branch not in folders and artefact_paths(branch, results / BRANCH_MANIFEST):
        names.append(f"{BRANCH}, which has no {BRANCH_MANIFEST}")
    return names


def read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Path -> size and SHA-256 of every file that a manifest lists, leftovers among them.

    Raises:
        UserError: the manifest is missing or damaged, or lists a path twice, one that leads out of
            the folder, or one that cannot be printed.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with `report manifest`")
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{path}: no manifest of format {FORMAT}; make it again")
    listed: dict[str, tuple[int, str]] = {}
    for key in ("artefacts", "leftovers"):
        entries = document.get(key)
        if not isinstance(entries, list):
            raise UserError(f"{path}: {key!r} is no list; make it again")
        for place, entry in enumerate(entries):
            name, size, digest = _entry(entry, f"{path}: {key} {place}")
            if name in listed:
                raise UserError(f"{path}: {key} {place}: {name!r} is listed twice; make it again")
            listed[name] = size, digest
    return listed


def check(results: Path, listed: dict[str, tuple[int, str]], manifest_path: Path) -> list[str]:
    """What differs, one line each, by path; shows progress on a terminal.

    Args:
        results: the folder.
        listed: size and SHA-256 by path, see `read_manifest`.
        manifest_path: the manifest, which does not list itself.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; give the folder of results")
    problems, present = {}, []
    for name, (size, _) in listed.items():
        path = results / name
        if not path.is_file():
            problems[name] = "missing"
        elif path.stat().st_size != size:
            problems[name] = f"changed: {path.stat().st_size} bytes, {size} listed"
        else:
            present.append(name)
    digests = digest_all([results / name for name in present])
    for name, (_, digest) in zip(present, digests, strict=True):
        if digest != listed[name][1]:
            problems[name] = f"changed: SHA-256 {digest[:16]}, {listed[name][1][:16]} listed"
    for name in artefact_paths(results, manifest_path):
        if name not in listed:
            problems[name] = "not listed"
    if (results / VERDICT).exists() and not _is_verdict_on(results / VERDICT, listed.get(JUDGED)):
        problems[VERDICT] = f"no verdict on the {JUDGED} that is listed"
    return [f"{_printable(name)}: {problems[name]}" for name in sorted(problems)]


def _is_verdict_on(path: Path, summary: tuple[int, str] | None) -> bool:
    """Whether what the gate wrote is about a summary of this size and SHA-256."""
    try:
        verdict = read_json(path)
    except (OSError, UserError):
        return False
    return summary is not None and isinstance(verdict, dict) and verdict.get("audit") == summary[1]


def _printable(name: str) -> str:
    """A file's name as it is, or quoted where it holds line ends or escape sequences."""
    return name if name.isprintable() else repr(name)


def _entry(artefact: Any, where: str) -> tuple[str, int, str]:
    if not isinstance(artefact, dict):
        raise UserError(f"{where} is no object; make the manifest again")
    name, size, digest = (artefact.get(key) for key in ("path", "bytes", "sha256"))
    if not isinstance(name, str) or not is_inside(name):
        raise UserError(f"{where}: {name!r} is no path below the folder of results")
    if not name.isprintable():
        raise UserError(f"{where}: {name!r} cannot be printed; rename the file")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise UserError(f"{where}: 'bytes' is {size!r}, no size; make the manifest again")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise UserError(f"{where}: 'sha256' is {digest!r}, no digest; make the manifest again")
    return name, size, digest


if __name__ == "__main__":
    from shielded_recrl.cli import run_stage

    sys.argv[1:1] = ["verify"]
    run_stage("report", {"verify": "Check a folder of results against its manifest."})
