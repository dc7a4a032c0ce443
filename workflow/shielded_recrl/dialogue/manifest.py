"""A list of everything in the dialogue branch, and of what made it.

In: the branch's folder of results and the study's config. Out: a manifest like that of the study
(docs/report.md), of the branch alone: it runs apart, so neither list goes stale with the other's runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shielded_recrl.config import Config
from shielded_recrl.report.manifest import describe, list_artefacts, read_config, write


def main(*, results: Path, config: Path, out: Path, threads: int | None = None) -> None:
    """List every artefact of the dialogue branch.

    Args:
        results: folder of results of the branch.
        config: the study's config, YAML or JSON; keys it lacks have their defaults.
        out: JSON file to write.
        threads: CPU threads of a job that ran the LM; by default those of the config.
    """
    write(manifest(results, read_config(config), out, threads), out, parts=2)


def manifest(
    results: Path, config: Config, out: Path, threads: int | None = None
) -> dict[str, Any]:
    """The manifest of the branch, which shows no more of the config than the branch reads.

    Args:
        results: the folder.
        config: of the study.
        out: where the manifest goes; it does not list itself.
        threads: CPU threads of a job that ran the LM; None: those of the config.
    """
    found = [one | {"stage": "dialogue"} for one in list_artefacts(results, out)]
    seeds = set(config.dialogue.seeds)
    runs = [f"rl/seed-{seed}" for seed in seeds]
    read = config.model_dump(mode="json", include={"seed", "dialogue"})
    own = config.resources.threads if threads is None else threads
    return describe(found, runs, read, seeds, own)
