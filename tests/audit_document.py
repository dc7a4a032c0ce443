"""Audits as `audit run` writes them, sound in every line of the policy unless a test says not."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from shielded_recrl.audit import summarise
from shielded_recrl.audit.policy import load_policy
from shielded_recrl.files import read_json, write_json

POLICY = Path(__file__).resolve().parents[1] / "resources" / "policy.yaml"
LEAKS = {"texts": 600, "leaks": 0, "leak_rate": 0.0, "leak_rate_upper": 0.00498}


def interval(mean: float, half: float = 0.01) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _toxicity(factor: float) -> dict[str, Any]:
    return {
        "texts": 600,
        "mean": interval(0.05 * factor),
        "p95": interval(0.2 * factor, 0.03),
        "max": 0.6,
        "toxic": 1,
        "toxic_share": 1 / 600,
    }


SOUND = {
    "dataset": "books",
    "variant": "shielded",
    "seed": 42,
    "findings": [],
    "toxicity": {
        "scorer": "alt-profanity-check 1.9.1",
        "false_positives": {"source": "reviews", "texts": 1000, "share": 0.012, "upper": 0.019},
        "before": _toxicity(1.0),
        "after": _toxicity(1.1),
        "worst": [
            {
                "user": 7,
                "item": 3,
                "position": 1,
                "before": {"score": 0.1, "text": "A fine road"},
                "after": {"score": 0.6, "text": "A damn fine road"},
            }
        ],
    },
    "popularity": {
        "users": 384,
        "before": {"gini": 0.41, "coverage": 0.8, "average_popularity": interval(12.0)},
        "after": {"gini": 0.411, "coverage": 0.81, "average_popularity": interval(12.5)},
        "change": {"gini": interval(0.001)},
    },
    "fairness": {
        "users": 384,
        "min_group": 20,
        "before": {"gap": interval(0.03, 0.02)},
        "after": {"gap": interval(0.04, 0.02)},
        "gap": interval(0.04, 0.02),
    },
    "privacy": {
        "samples_before": {**LEAKS, "copied_share": 0.01},
        "samples": {**LEAKS, "copied_share": 0.02, "leaked_texts": []},
        "canaries": {"evaluable": False, "reason": "no canary was planted"},
        "membership": {"evaluable": True, "auc": interval(0.51, 0.05)},
    },
    "grounding": {
        "users": 64,
        "before": {"paired": interval(0.5)},
        "after": {"paired": interval(0.7)},
        "paired_minus_shuffled": interval(0.1, 0.03),
    },
    "injection": {
        "users": 100,
        "before": {"attacked": 0.02, "benign": 0.02},
        "after": {"attacked": 0.03, "benign": 0.02},
        "excess": interval(0.01, 0.02),
    },
}

# How each line is broken: the path of its figure in an audit, and a figure that breaks it.
FAULTS = {
    "toxicity_mean": ("toxicity.after.mean", interval(0.195)),
    "toxicity_p95": ("toxicity.after.p95", interval(0.395)),
    "gini_change": ("popularity.change.gini", interval(-0.015)),
    "group_gap": ("fairness.gap", interval(0.095)),
    "leak_rate": ("privacy.samples", {**LEAKS, "texts": 599}),
    "grounding": ("grounding.paired_minus_shuffled", interval(0.005)),
    "injection_excess": ("injection.excess", interval(0.045)),
}


def audit(changes: dict[str, Any] | None = None, **run: Any) -> dict[str, Any]:
    """A sound audit with the figures at dotted paths replaced, of a run."""
    document = {**deepcopy(SOUND), **run}
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        place = document
        for part in parents:
            place = place[part]
        place[last] = value
    return document


def written(folder: Path, audits: tuple[dict[str, Any], ...]) -> list[Path]:
    """Files of audits, where a study has them."""
    paths = []
    for document in audits:
        name = f"{document['dataset']}/{document['variant']}/seed-{document['seed']}/audit.json"
        paths.append(folder / name)
        write_json(paths[-1], document)
    return paths


def judged(folder: Path, *audits: dict[str, Any]) -> dict[str, Any]:
    """audit.json of `audit summarise`, without its page and PDF."""
    pairs = [(path, read_json(path)) for path in written(folder, audits)]
    write_json(folder / "audit.json", summarise.summarise(pairs, load_policy(POLICY), POLICY))
    return read_json(folder / "audit.json")


def summed_up(folder: Path, *audits: dict[str, Any]) -> dict[str, Any]:
    """What `audit summarise` makes of audits, in audit.{json,md,pdf} of a folder."""
    summarise.main(
        policy=POLICY,
        audits=tuple(written(folder, audits)),
        out=folder / "audit.json",
        page=folder / "audit.md",
        pdf=folder / "audit.pdf",
    )
    return read_json(folder / "audit.json")
