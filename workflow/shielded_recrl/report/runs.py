"""Finished runs with their certificates, their audits and the facts about their datasets.

In: folders of runs, audit files and their summary, stats.json files. Out: one `Run` each, in the order
of the study; the summary.
A file that is missing, damaged or of another run is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, read_jsonl, sha256

IDENTITY = ("dataset", "variant", "seed")
CURVE = ("step", "ctr", "ndcg@10", "quality", "reward", "kl")
COHORTS = ("protected", "heldout")


class Run(NamedTuple):
    """Everything known about one trained policy, as read from its files."""

    folder: Path
    dataset: str
    variant: str
    seed: int
    evaluation: dict[str, Any]
    certificate: dict[str, Any]
    summary: dict[str, Any]
    steps: list[dict[str, Any]]
    audit: dict[str, Any]
    stats: dict[str, Any]


def load_runs(folders: Sequence[Path], audits: Sequence[Path], stats: Sequence[Path]) -> list[Run]:
    """Read runs, sorted by dataset, then variant in the order given, then seed.

    Args:
        folders: of runs, with evaluation.json, certificate.json, summary.json and train.jsonl.
        audits: made from the runs' explanations and rankings, in any order.
        stats: stats.json of every dataset.

    Raises:
        UserError: a file is missing or malformed, a run lacks its audit or statistics, or two
            folders hold the same dataset, variant and seed.
    """
    by_inputs = _index(audits, _audited)
    by_dataset = _index(stats, lambda path, about: _get(about, "dataset", path))
    runs = [_load(folder, by_inputs, by_dataset) for folder in folders]
    seen: dict[tuple[str, str, int], Path] = {}
    for run in runs:
        key = (run.dataset, run.variant, run.seed)
        if key in seen:
            raise UserError(
                f"{run.folder}: the same dataset, variant and seed as {seen[key]}; give one of them"
            )
        seen[key] = run.folder
    order = {name: place for place, name in enumerate(dict.fromkeys(run.variant for run in runs))}
    return sorted(runs, key=lambda run: (run.dataset, order[run.variant], run.seed))


def read_summary(path: Path) -> dict[str, Any]:
    """Read audit.json of `audit summarise`.

    Raises:
        UserError: the file is missing or damaged, or no such summary.
    """
    summary = _read(path, read_json)
    policy, runs = summary.get("policy"), summary.get("runs")
    whole = isinstance(policy, dict) and policy.keys() >= {"lines", "variants"}
    if not whole or not (isinstance(runs, list) and all(map(_is_judged, runs))):
        raise UserError(f"{path}: no summary of audits; make it again with `audit summarise`")
    return summary


def _is_judged(run: Any) -> bool:
    return isinstance(run, dict) and run.keys() >= {*IDENTITY, "verdicts"}


def _load(folder: Path, audits: dict[Any, Any], stats: dict[Any, Any]) -> Run:
    evaluation = _read(folder / "evaluation.json", read_json)
    certificate = _read(folder / "certificate.json", read_json)
    summary = _read(folder / "summary.json", read_json)
    steps = _read(folder / "train.jsonl", read_jsonl)
    name = {key: _get(evaluation, key, folder / "evaluation.json") for key in IDENTITY}
    for key in IDENTITY:
        if (other := _get(summary, key, folder / "summary.json")) != name[key]:
            raise UserError(
                f"{folder / 'summary.json'}: {key} is {other!r}, but {name[key]!r} in "
                "evaluation.json; train and evaluate the run again"
            )
    for role in COHORTS:
        largest = [
            _get(_get(document, role, path), "max_score_change", path)
            for document, path in (
                (certificate, folder / "certificate.json"),
                (_get(evaluation, "drift", folder / "evaluation.json"), folder / "evaluation.json"),
            )
        ]
        if largest[0] != largest[1]:
            raise UserError(
                f"{folder / 'certificate.json'}: max_score_change of {role} users is {largest[0]}, "
                f"but {largest[1]} in evaluation.json; evaluate the run again"
            )
    curve = _get(evaluation, "curve", folder / "evaluation.json")
    if not curve or not all(
        isinstance(point.get(key), (int, float)) for point in curve for key in CURVE
    ):
        raise UserError(
            f"{folder / 'evaluation.json'}: 'curve' needs points with numbers "
            f"{', '.join(CURVE)}; evaluate the run again"
        )
    planned = _get(summary, "steps", folder / "summary.json")
    if not steps or len(steps) != planned:
        raise UserError(
            f"{folder / 'train.jsonl'}: {len(steps)} rows, but summary.json tells of {planned} "
            "steps; train the run again"
        )
    inputs = (_read(folder / file, sha256) for file in ("explanations.jsonl", "rankings.parquet"))
    audit = (*name.values(), *inputs)
    if audit not in audits:
        raise UserError(
            f"{folder}: none of the audits was made from its explanations.jsonl and "
            "rankings.parquet; run `audit run` on it and give its output to --audits"
        )
    if name["dataset"] not in stats:
        raise UserError(
            f"{folder}: no statistics of dataset {name['dataset']!r}; give its stats.json to --stats"
        )
    return Run(
        folder,
        **name,
        evaluation=evaluation,
        certificate=certificate,
        summary=summary,
        steps=steps,
        audit=audits[audit],
        stats=stats[name["dataset"]],
    )


def _audited(path: Path, audit: dict[str, Any]) -> tuple[Any, ...]:
    """Whose audit it is, and what it was made from: other runs may have written the same."""
    inputs = _get(audit, "inputs", path)
    if not isinstance(inputs, dict):
        raise UserError(f"{path}: 'inputs' is no JSON object; make it again with `audit run`")
    name = (_get(audit, key, path) for key in IDENTITY)
    return *name, inputs.get("explanations"), inputs.get("rankings")


def _index(
    paths: Sequence[Path], key: Callable[[Path, dict[str, Any]], Any]
) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for path in paths:
        document = _read(path, read_json)
        name = key(path, document)
        if found.setdefault(name, document) != document:
            raise UserError(f"{path}: contradicts another file given for the same data; keep one")
    return found


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        content = reader(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it again") from None
    if reader is read_json and not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; make it again")
    return content


def _get(document: Any, key: str, path: Path) -> Any:
    if not isinstance(document, dict) or key not in document:
        raise UserError(f"{path}: {key!r} is missing; make it again")
    return document[key]
