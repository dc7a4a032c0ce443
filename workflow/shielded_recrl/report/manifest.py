"""A list of everything below a folder of results, and of what made it.

In: a folder of results and the study's config. Out: manifest.json with path, size, SHA-256 and stage
of every artefact, the resolved config, seeds and threads, and the versions and machine of the job that
writes it. No host, user or absolute path is in it, and equal results on one machine give equal bytes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from shielded_recrl.config import Config, load_config
from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import write_json
from shielded_recrl.provenance import ROOT

FORMAT = 1
# Below the folder of results: what a rerun may change, what is gone when a run has ended, and the
# dialogue branch, which runs apart and has a manifest of its own.
NO_ARTEFACTS = ("logs", "benchmarks", "scratch", "live", "dialogue")
# What a shard leaves, until it has been joined; the copy of one in a storage may stay for a while.
PART = re.compile(r"shard-\d+-of-\d+(\.json)?")
# Made of files that are in the manifest, after it or apart from it: the report, with the time of day,
# and the verdict of the audit gate, which is there only where the policy holds.
REPORT, VERDICT, JUDGED = "report/report.html", "audit/passed", "audit/audit.json"
MADE_AFTER = (REPORT, VERDICT)
# Below these folders, files of a run lie in {dataset}/{variant}/seed-{seed}.
BY_RUN = ("rl", "audit")
STAGES = ("data", "ranker", "explainer", "shield", "rl", "audit", "report")
PACKAGES = ("torch", "transformers", "peft", "snakemake", "numpy", "shielded-recrl")
# What decides the results: paths of the repository.
SOURCES = ("Snakefile", "config", "envs", "resources", "rules", "workflow")
CHUNK = 2**20


def main(*, results: Path, config: Path, out: Path, threads: int | None = None) -> None:
    """List every artefact of a study.

    Args:
        results: folder of results.
        config: the study's config, YAML or JSON; keys it lacks have their defaults.
        out: JSON file to write.
        threads: CPU threads of a job that ran the LM; by default those of the config.
    """
    write(manifest(results, read_config(config), out, threads), out, parts=4)


def manifest(
    results: Path, config: Config, out: Path, threads: int | None = None
) -> dict[str, Any]:
    """The manifest of a folder.

    Args:
        results: the folder.
        config: of the study.
        out: where the manifest goes; it does not list itself.
        threads: CPU threads of a job that ran the LM; None: those of the config.
    """
    runs = {
        f"{stage}/{cell.dataset}/{variant}/seed-{seed}"
        for stage in BY_RUN
        for cell in config.study
        for variant in cell.variants
        for seed in cell.seeds
    }
    # What jobs take from the machine changes no result; what they took is told by name.
    plain = config.model_dump(mode="json", exclude={"resources"})
    seeds = {seed for cell in config.study for seed in cell.seeds}
    own = config.resources.threads if threads is None else threads
    return describe(list_artefacts(results, out), runs, plain, seeds, own)


def describe(
    found: list[dict[str, Any]],
    runs: Collection[str],
    config: dict[str, Any],
    seeds: Collection[int],
    threads: int,
) -> dict[str, Any]:
    """A manifest.

    Args:
        found: what lies in the folder, as `list_artefacts` tells.
        runs: folders of the runs of the config, below that of results.
        config: what decides the results, with the key `seed`.
        seeds: of the runs.
        threads: CPU threads of a job that ran the LM.
    """
    shown, shortened = without_absolute_paths(config)
    return {
        "format": FORMAT,
        "artefacts": [one for one in found if not is_leftover(one["path"], runs)],
        "leftovers": [one for one in found if is_leftover(one["path"], runs)],
        "config": shown,
        "config_paths_shortened": shortened,
        "seeds": {"config": config["seed"], "runs": sorted(seeds)},
        "threads": threads,
        "written_by": {"versions": versions(), "machine": machine()},
    }


def write(document: dict[str, Any], out: Path, parts: int) -> None:
    """Write a manifest, and say what it lists.

    Args:
        document: the manifest.
        out: where it goes.
        parts: names in the path of a run, by which leftovers are told.
    """
    write_json(out, document)
    if document["leftovers"]:
        folders = dict.fromkeys(
            "/".join(one["path"].split("/")[:parts]) for one in document["leftovers"]
        )
        print(f"warning: of no run of this config, listed as leftovers: {', '.join(folders)}")
    size = sum(one["bytes"] for one in document["artefacts"])
    print(f"{out}: {len(document['artefacts'])} artefacts, {size / 2**20:.1f} MiB")


def is_leftover(path: str, runs: Collection[str]) -> bool:
    """Whether an artefact lies where runs do, but below the folder of none of these.

    >>> runs = ["rl/books/shielded/seed-42"]
    >>> is_leftover("rl/books/kl0/seed-42/a.json", runs), is_leftover("audit/audit.json", runs)
    (True, False)
    """
    first, *rest = path.split("/")
    beside = any(run.startswith(f"{first}/") for run in runs)
    return beside and len(rest) > 1 and not any(path.startswith(f"{run}/") for run in runs)


def list_artefacts(results: Path, manifest_path: Path) -> list[dict[str, Any]]:
    """path, bytes, sha256 and stage of every artefact, by path; shows progress on a terminal.

    Raises:
        UserError: there is no such folder, or a file in it has a name that cannot be printed.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; give the folder of results")
    paths = artefact_paths(results, manifest_path)
    for path in paths:
        if not path.isprintable():
            raise UserError(f"{results}: {path!r} cannot be printed; rename or remove it")
    digests = digest_all([results / path for path in paths])
    return [
        {"path": path, "bytes": size, "sha256": digest, "stage": stage_of(path)}
        for path, (size, digest) in zip(paths, digests, strict=True)
    ]


def artefact_paths(results: Path, manifest_path: Path) -> list[str]:
    """Paths of all artefacts relative to the folder, with slashes, sorted.

    Left out are `NO_ARTEFACTS`, `MADE_AFTER`, the manifest, what shards left, and hidden files: marks
    of Snakemake and files that are being written. Links to other disks are followed, each folder once.
    """
    own = manifest_path.resolve()
    found, walked = [], set()
    for folder, folders, files in os.walk(results, followlinks=True):
        if (real := os.path.realpath(folder)) in walked:
            folders.clear()
            continue
        walked.add(real)
        # Of two ways to a folder, the same is taken on every disk.
        folders.sort()
        top = Path(folder) == results
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and not (top and name in NO_ARTEFACTS)
            and not PART.fullmatch(name)
        ]
        for name in files:
            path = Path(folder) / name
            relative = path.relative_to(results).as_posix()
            left_out = name.startswith(".") or PART.fullmatch(name) or relative in MADE_AFTER
            if not left_out and path.resolve() != own:
                found.append(relative)
    return sorted(found)


def digest_all(paths: list[Path]) -> Iterator[tuple[int, str]]:
    """Size and SHA-256 of each file, read piece by piece; shows progress on a terminal."""
    from tqdm import tqdm

    total = sum(path.stat().st_size for path in paths)
    with tqdm(total=total, unit="B", unit_scale=True, desc="hashing", disable=None) as bar:
        for path in paths:
            digest, size = hashlib.sha256(), 0
            with path.open("rb") as stream:
                while piece := stream.read(CHUNK):
                    digest.update(piece)
                    size += len(piece)
                    bar.update(len(piece))
            yield size, digest.hexdigest()


def stage_of(path: str) -> str | None:
    """The stage that makes an artefact; None where its path does not tell.

    >>> stage_of("rl/books/shielded/seed-42/evaluation.json"), stage_of("aggregate_results.csv")
    ('rl', 'report')
    """
    first, *rest = path.split("/")
    if not rest:
        return "report"
    return first if first in STAGES else None


def read_config(path: Path) -> Config:
    """Read and check a config.

    Raises:
        UserError: the file is missing, no YAML, or no config of the study.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: no readable config ({first_line(error)}); give a YAML file"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: no readable config; expected a mapping of keys")
    return load_config(values)


def without_absolute_paths(value: Any, key: str = "") -> tuple[Any, list[str]]:
    """A config in which absolute paths are cut to their last part, and the keys of those cut.

    >>> without_absolute_paths({"a": {"b": "/home/me/steam-200k.csv"}, "c": 1})
    ({'a': {'b': 'steam-200k.csv'}, 'c': 1}, ['a.b'])
    """
    if isinstance(value, dict):
        parts = {
            name: without_absolute_paths(inner, f"{key}.{name}") for name, inner in value.items()
        }
        shown: Any = {name: part[0] for name, part in parts.items()}
        return shown, [cut for part in parts.values() for cut in part[1]]
    if isinstance(value, list):
        items = [without_absolute_paths(inner, f"{key}.{i}") for i, inner in enumerate(value)]
        return [item[0] for item in items], [cut for item in items for cut in item[1]]
    if isinstance(value, str):
        windows = PureWindowsPath(value)
        if value.startswith(("/", "~")) or windows.drive:
            return windows.name, [key.removeprefix(".")]
    return value, []


def versions() -> dict[str, str | None]:
    """Versions, in this environment, of Python and of packages that make results, and the commit."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return {**found, "commit": commit()}


def commit(library: Path = ROOT) -> str | None:
    """Commit of the repository that holds the library, `+changes` where `SOURCES` differ from it.

    Files that git does not know yet count as changes, ignored ones do not. None without git, and
    where the library lies in a repository that does not track it.

    Args:
        library: folder of the package, two below the root of the project.
    """
    tracked = _git(library, "ls-files", "--error-unmatch", "__init__.py")
    head = _git(library, "rev-parse", "HEAD")
    if not tracked or not head:
        return None
    project = library.parents[1]
    changes = _git(project, "status", "--porcelain", "--untracked-files=normal", "--", *SOURCES)
    return head + ("+changes" if changes else "")


def machine() -> dict[str, Any]:
    """What this process runs on, without the name of host or user."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "gpus": gpu_models(),
    }


def gpu_models(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Models of the NVIDIA GPUs that the driver shows."""
    return [
        line.partition(":")[2].strip()
        for path in sorted(folder.glob("*/information"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("Model:")
    ]


def is_inside(path: str) -> bool:
    """Whether a path of a manifest stays below the folder of results.

    >>> is_inside("rl/a.json"), is_inside("../a.json"), is_inside("/etc/passwd"), is_inside("a//b")
    (True, False, False, False)
    """
    plain = PurePosixPath(path)
    return (
        path not in ("", ".")
        and path == plain.as_posix()
        and not plain.is_absolute()
        and ".." not in plain.parts
        and "\\" not in path
        and "\0" not in path
    )


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
