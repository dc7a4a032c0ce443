"""What the pages of the comparison are made of: evaluated runs, and the stages before them.

In: folders of `evaluate`, `evaluation.json` of the recommender, `report.json` of the critic. Out: what
they hold, once it is known to be whole and of one study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shielded_recrl.dialogue.comparison.text import judges
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, read_jsonl, sha256

PARTS = (
    *("systems", "comparisons", "kl", "samples", "distance", "recommendations", "synthetic"),
    *("inputs", "judges", "training", "files", "sampling_seed"),
)
ANSWERED = {"dialogue", "turn", "context", "emotions", "recommended", "responses"}
# What is the same in all runs of a study, by its place in evaluation.json; of a part, all but `OWN`.
SHARED = (
    ("sampling_seed",),
    ("synthetic",),
    ("turns",),
    ("dialogues",),
    ("temperature",),
    ("samples", "a_turn"),
    ("recommendations", "before", "sha256"),
    ("training",),
    ("inputs",),
)
OWN = "inputs.adapter"

Row = Mapping[str, Any]


class Run(NamedTuple):
    """One evaluated training.

    Attributes:
        folder: of the run.
        evaluation: evaluation.json.
        log: train.jsonl.
    """

    folder: Path
    evaluation: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.evaluation["seed"]

    @property
    def judges(self) -> tuple[str, ...]:
        """Names of those who scored, see `judges`."""
        return judges(self.evaluation)


def load_run(folder: Path) -> Run:
    """Read a run's evaluation and training log.

    Raises:
        UserError: one is missing or damaged, not of this kind, or the log of another training.
    """
    for name in ("evaluation.json", "train.jsonl"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: no such file; run `python -m shielded_recrl.dialogue train` and "
                "`evaluate`"
            )
    found = _with(folder / "evaluation.json", PARTS, "evaluate")
    log = read_jsonl(folder / "train.jsonl")
    if not log:
        raise UserError(f"{folder / 'train.jsonl'}: no step in it; run train again")
    _check_digest(folder / "train.jsonl", found, "training")
    return Run(folder, found, log)


def load_study(folders: Sequence[Path]) -> list[Run]:
    """Runs that differ by their seed alone, in the order of their seeds.

    Raises:
        UserError: there is none, two have one seed, or they differ in anything else.
    """
    if not folders:
        raise UserError("--runs: none; name one folder of `evaluate` at least")
    first, *others = runs = [load_run(folder) for folder in folders]
    for run in others:
        one, other = _shared(first.evaluation), _shared(run.evaluation)
        for place in one | other:
            if place not in one or place not in other or one[place] != other[place]:
                raise UserError(
                    f"{run.folder / 'evaluation.json'}: {place} is not that of {first.folder}; report "
                    "runs that differ by their seed alone"
                )
        if run.judges != first.judges:
            raise UserError(
                f"{run.folder / 'evaluation.json'}: scored by {', '.join(run.judges)}, but "
                f"{first.folder} by {', '.join(first.judges)}; evaluate both by the same judges"
            )
    seeds = [run.seed for run in runs]
    for seed in sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise UserError(f"--runs: seed {seed} is there twice; name each training once")
    return sorted(runs, key=lambda run: run.seed)


def load_responses(folder: Path) -> list[Row]:
    """Read responses.jsonl of a run.

    Raises:
        UserError: it is missing or damaged, not of this kind, or of another evaluation.
    """
    path = folder / "responses.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `python -m shielded_recrl.dialogue evaluate`")
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not row.keys() >= ANSWERED:
            raise UserError(f"{path}, line {number}: no answered turn; run evaluate again")
    found = _with(folder / "evaluation.json", ("files",), "evaluate")
    _check_digest(path, found, "evaluation")
    return rows


def load_critic(path: Path) -> dict[str, Any]:
    """Read report.json of the critic.

    Raises:
        UserError: it is missing or damaged, or not of this kind.
    """
    return _with(path, ("heads", "corruptions", "learned_from", "model"), "critic")


def load_summary(run: Path) -> dict[str, Any]:
    """Read summary.json of a run of `train`.

    Raises:
        UserError: it is missing or damaged, or not of this kind.
    """
    return _with(
        run / "summary.json",
        ("seed", "inputs", "form", "recall", "steps", "samples", "settings_sha256"),
        "train",
    )


def load_recommender(path: Path) -> dict[str, Any]:
    """Read the test split's new films of the recommender's evaluation.json.

    Raises:
        UserError: it is missing or damaged, or not of this kind.
    """
    return _with(path, ("splits",), "recommend")["splits"]["test"]["new"]


def _with(path: Path, parts: Sequence[str], command: str) -> dict[str, Any]:
    """A JSON object that has some keys, the file of a command."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `python -m shielded_recrl.dialogue {command}`")
    found = read_json(path)
    missing = [part for part in parts if part not in found] if isinstance(found, dict) else parts
    if missing:
        raise UserError(
            f"{path}: no {missing[0]}; run `python -m shielded_recrl.dialogue {command}` again"
        )
    return found


def _check_digest(path: Path, evaluation: Mapping[str, Any], writer: str) -> None:
    """Refuse a file that is not the one that evaluation.json was written beside."""
    if evaluation["files"].get(path.name) != sha256(path):
        raise UserError(f"{path}: written by another {writer}; run evaluate again")


def _shared(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same in all runs of a study, a row for each key of a part."""
    found: dict[str, Any] = {}
    for place in SHARED:
        name, value = ".".join(place), _at(evaluation, place)
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": one for key, one in value.items()}
        else:
            found[name] = value
    return {name: value for name, value in found.items() if name != OWN}


def _at(found: Mapping[str, Any], place: Sequence[str]) -> Any:
    for key in place:
        found = found[key]
    return found
