"""Write finished work into archives, one for each dataset.

In: a folder in which Snakemake ran: `results/`, and its records below `.snakemake`. Out: `{dataset}.tar`
for each dataset and `study.tar` for what belongs to no single one (table, figures, pages): finished
outputs with their logs and benchmarks, exact times and records. Downloads, models from the hub and
the files of the repository stay behind; what was read of them is listed with its SHA-256.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path

from shielded_recrl.cluster.archive import (
    RESULTS,
    File,
    Input,
    Manifest,
    clock,
    content,
    files_of,
    write,
)
from shielded_recrl.cluster.records import INCOMPLETE, METADATA, noted, read_record, require_idle
from shielded_recrl.data.settings import DATASETS
from shielded_recrl.errors import UserError
from shielded_recrl.report.manifest import digest_all

STUDY = "study"
# Below these folders of the results, each dataset has its own; the first are all that a run reads.
BEFORE_RUNS = ("data", "ranker", "explainer", "shield")
BY_DATASET = (*BEFORE_RUNS, "rl", "audit")


def main(
    *,
    dataset: tuple[str, ...] = (),
    out: Path = Path("packs"),
    runs: bool = True,
    folder: Path = Path("."),
) -> None:
    """Write finished work into archives, one for each dataset and one for the study.

    Args:
        dataset: what to pack, `study` for what belongs to no single dataset; all that is finished by
            default.
        out: folder of the archives.
        runs: whether trained adapters, evaluations, audits and the study's table go along, or only
            what they are made from: splits, rankers, base LMs, read-outs and bases.
        folder: where Snakemake ran.

    Raises:
        UserError: Snakemake runs there, nothing is finished, a job was cut, or an output is a link.
    """
    require_idle(folder)
    parts: dict[str, dict[str, Path]] = {}
    for output, note in outputs(folder, METADATA).items():
        if runs or before_runs(output):
            parts.setdefault(part_of(output), {})[output] = note
    parts = {part: parts[part] for part in (*DATASETS, STUDY) if part in parts}
    if not parts:
        raise UserError(
            f"{folder}: nothing finished by Snakemake; give the folder of a study as --folder"
        )
    for part in dataset:
        if part not in parts:
            raise UserError(
                f"--dataset {part}: nothing of it is finished; expected one of {', '.join(parts)}"
            )
    chosen = {part: parts[part] for part in dataset or parts}
    for output in outputs(folder, INCOMPLETE):
        if part_of(output) in chosen and (runs or before_runs(output)):
            raise UserError(
                f"{folder / output}: the job that makes it has not ended; run "
                "`snakemake --rerun-incomplete`, then pack again"
            )
    digest = cache(content)
    for part, notes in chosen.items():
        path = out / f"{part}.tar"
        manifest = manifest_of(folder, part, notes, digest)
        write(path, manifest, folder)
        print(
            f"{path}: {len(manifest.outputs)} outputs, {len(manifest.files)} files, "
            f"{manifest.size / 2**20:.1f} MiB"
        )


def outputs(folder: Path, notes: str) -> dict[str, Path]:
    """Outputs below the results that are there and have a note of this kind, and the notes."""
    return {
        output: note
        for output, note in noted(folder / notes).items()
        if output.startswith(RESULTS) and (folder / output).exists()
    }


def part_of(output: str) -> str:
    """What an output belongs to: a dataset, or the study.

    >>> part_of("results/ranker/books/model.safetensors"), part_of("results/audit/audit.json")
    ('books', 'study')
    """
    _, stage, *rest = output.split("/")
    return rest[0] if stage in BY_DATASET and rest and rest[0] in DATASETS else STUDY


def before_runs(output: str) -> bool:
    """Whether an output is made before any run, for all runs on a dataset.

    >>> before_runs("results/ranker/books/model.safetensors"), before_runs("results/manifest.json")
    (True, False)
    """
    return part_of(output) != STUDY and output.split("/")[1] in BEFORE_RUNS


def manifest_of(
    folder: Path, part: str, notes: dict[str, Path], digest: Callable[[Path], str] = content
) -> Manifest:
    """What the archive of a part is to hold; reads every file.

    Args:
        folder: where Snakemake ran.
        part: name of the part.
        notes: its outputs, and where their records lie.
        digest: of an input; one that remembers saves reading those that parts share again.

    Raises:
        UserError: an output or something in its folder is no file, or a record is damaged.
    """
    records = {output: read_record(note) for output, note in notes.items()}
    logs = {log for record in records.values() for log in record["log"]}
    read = {path for record in records.values() for path in record["input"]}
    paths = sorted(
        {
            path.relative_to(folder).as_posix()
            for name in records.keys() | logs | set(map(benchmark_of, logs))
            for path in files_of(folder / name)
            if os.path.lexists(path)
        }
    )
    files = [folder / path for path in paths]
    states = [file.lstat() for file in files]
    for file, state in zip(files, states, strict=True):
        if not stat.S_ISREG(state.st_mode):
            raise UserError(f"{file}: a link or device; put the file itself there, then pack")
    return Manifest(
        part=part,
        files=[
            File(path=path, size=size, mtime_ns=state.st_mtime_ns, sha256=sha256)
            for path, state, (size, sha256) in zip(paths, states, digest_all(files), strict=True)
        ],
        outputs=records,
        inputs=[
            Input(
                path=os.path.normpath(path),
                mtime_ns=clock(folder / path).stat().st_mtime_ns,
                sha256=digest(folder / path),
            )
            for path in sorted(read)
            if not path.startswith(RESULTS) and (folder / path).exists()
        ],
    )


def benchmark_of(log: str) -> str:
    """Where the benchmark of the job lies that writes a log.

    >>> benchmark_of("results/logs/data/books/prepare.log")
    'results/benchmarks/data/books/prepare.tsv'
    """
    return f"{log.replace('/logs/', '/benchmarks/', 1).removesuffix('.log')}.tsv"
