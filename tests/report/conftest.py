"""A study on disk, exactly as training, evaluation, audit and data preparation leave it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from shielded_recrl.files import write_json, write_jsonl, write_text

STUDY = [
    ("steam", "no_proj", 42),
    ("books", "shielded", 43),
    ("books", "shielded", 42),
    ("books", "shielded", 44),
    ("books", "no_proj", 42),
    ("books", "no_proj", 43),
    ("books", "no_proj", 44),
    ("books", "kl0", 42),
    ("ml25m", "no_proj", 43),
    ("ml25m", "no_proj", 42),
    ("ml25m", "shielded", 42),
    ("ml25m", "shielded", 43),
    ("books", "lora4", 42),
    ("books", "long_expl", 42),
    ("steam", "shielded", 42),
]
LEVELS = {"books": (0.31, 0.142), "ml25m": (0.36, 0.081), "steam": (0.28, 0.203)}
KEPT = {"books": 400, "ml25m": 601, "steam": 3726}
LIFT = {"shielded": 0.07, "no_proj": 0.085, "kl0": 0.075, "lora4": 0.05, "long_expl": 0.09}
GAINS = {"shielded": 0.11, "no_proj": 0.12, "no_proj_all": 0.16}
KINDS = {
    "no_proj": "none",
    "no_proj_all": "none",
    "separate": "separate",
    "activated": "activated",
    "random": "random",
}
USERS = 128
STEPS = 24


class Study(NamedTuple):
    """Paths to give to `report aggregate`."""

    runs: list[Path]
    audits: list[Path]
    stats: list[Path]


def _change(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def build_run(root: Path, dataset: str, variant: str, seed: int) -> tuple[Path, Path]:
    """Write one run and its audit; the numbers vary by dataset, variant and seed."""
    digest = hashlib.sha256(f"{dataset} {variant} {seed}".encode())
    rng = np.random.default_rng(list(digest.digest()))
    folder = root / "rl" / dataset / variant / f"seed-{seed}"
    click, ndcg = LEVELS[dataset]
    lift = LIFT.get(variant, 0.08) + rng.normal(0, 0.012)
    moved = variant == "no_proj"
    kind = KINDS.get(variant, "nullspace")
    exact = kind in ("separate", "activated")
    shift = rng.normal(-0.012, 0.006) if moved else 0.0 if exact else rng.normal(0, 2e-4)
    snapshots = (0, 8, 16, STEPS)
    curve = [
        {
            "step": step,
            "ndcg@10": ndcg + 0.006 + shift * step / STEPS,
            "hr@10": 2 * ndcg + shift * step / STEPS,
            "ctr": click * (1 + lift * (1 - np.exp(-step / 8))) + (step > 0) * rng.normal(0, 2e-3),
            "quality": 0.4 + 0.01 * step,
            "words": 11.0 + 0.2 * step,
            "reward": 0.42 + (GAINS.get(variant, 0.08) * (1 - np.exp(-step / 10))),
            "kl": 0.02 * step * (1 + 0.5 * moved),
        }
        for step in snapshots
    ]
    served = [{"ndcg@10": curve[i]["ndcg@10"], "hr@10": curve[i]["hr@10"]} for i in (0, -1)]
    certificate = build_certificate(kind, 0.8 if moved else 0.0 if exact else 0.01, shift)
    write_json(folder / "certificate.json", certificate)
    gain = GAINS.get(variant, 0.08) + rng.normal(0, 4e-3)
    write_json(
        folder / "evaluation.json",
        {
            "dataset": dataset,
            "variant": variant,
            "seed": seed,
            "gamma": 0.5,
            "ranker": {"ndcg@10": ndcg, "hr@10": 2 * ndcg},
            "lm": {"ndcg@10": 0.6 * ndcg, "hr@10": 1.2 * ndcg},
            "curve": curve,
            "served_before": served[0],
            "served_after": served[1],
            "ndcg_change": _change(shift, 8e-3 if moved else 0.0 if exact else 4e-4),
            "drift": {role: certificate[role] for role in ("protected", "heldout")},
            "reward": {
                "before": 0.42,
                "after": 0.42 + gain,
                "gain": gain,
                "gain_low": gain - 0.01,
                "gain_high": gain + 0.012,
                "ceiling": 1.0,
            },
            "overoptimisation": {
                "peak": STEPS,
                "gold_fall": 0.0,
                "gold_fall_low": 0.0,
                "gold_fall_high": 0.0,
                "proxy_rise": 0.0,
                "proxy_rise_low": 0.0,
                "proxy_rise_high": 0.0,
                "found": False,
            },
            "claims": {
                "precision_before": 0.61,
                "precision_after": 0.7,
                "change": 0.09,
                "change_low": 0.04,
                "change_high": 0.15,
                "named_before": 1.4,
                "named_after": 2.3,
            },
            "ctr": {
                "before": click,
                "after": curve[-1]["ctr"],
                "relative": curve[-1]["ctr"] / click,
                "relative_low": curve[-1]["ctr"] / click - 0.021,
                "relative_high": curve[-1]["ctr"] / click + 0.019,
                "attainable": 1.16,
                "lift_share": lift / 0.16,
                "lift_share_low": lift / 0.16 - 0.1,
                "lift_share_high": lift / 0.16 + 0.1,
                "from_empty": 1.24,
                "published_share": 0.225 / 0.16,
            },
            "text": {
                "words_before": 11.0,
                "words_after": 15.8,
                "quality_before": 0.4,
                "quality_after": 0.64,
                "unique_before": 0.98,
                "unique_after": 0.71,
                "empty_after": 0.0,
            },
            "kl": float(rng.uniform(0.05, 0.4)),
        },
    )
    write_json(
        folder / "summary.json",
        {
            "dataset": dataset,
            "variant": variant,
            "seed": seed,
            "steps": STEPS,
            "seconds": float(rng.uniform(40, 60)),
            "peak_memory_mb": float(rng.uniform(800, 900)),
            "trainable_share": 0.118,
            "trainable_parameters": 131072,
            "adapter_sha256": digest.hexdigest(),
            "fingerprint": digest.hexdigest()[:16],
            "shield": {"kind": kind, "leakage": 1e-7},
        },
    )
    write_jsonl(
        folder / "train.jsonl",
        [{"step": step, "reward": 0.4 + 0.01 * step, "seconds": 1.5} for step in range(1, 25)],
    )
    write_jsonl(
        folder / "explanations.jsonl",
        [
            {
                "step": step,
                "title": f"Title {place}",
                "categories": ["Drama", "War"],
                "history": ["Past | one", "<b>Past</b> two"],
                "text": f"Text {place} of {digest.hexdigest()[:6]} at {step}.",
                "quality": place / 20,
            }
            for step in (0, STEPS)
            for place in range(12)
        ],
    )
    write_text(folder / "rankings.parquet", f"rankings of {digest.hexdigest()}\n")
    audit = root / "audit" / dataset / variant / f"seed-{seed}.json"
    write_json(audit, _audit(folder, rng))
    return folder, audit


def build_certificate(kind: str, changed: float, shift: float) -> dict:
    """What `rl evaluate` certifies: a share of users changed, and a change of NDCG@10."""
    certificate = _certified(kind, None, changed, shift)
    if kind not in ("separate", "activated"):
        certificate["merges"] = {
            "fp32": _certified(kind, "fp32", changed, shift),
            "bf16": _certified(kind, "bf16", changed + 0.02, shift),
            "nf4": {
                "merged": "nf4",
                "verdict": None,
                "sentence": "not measured: bitsandbytes is not installed",
            },
        }
    return certificate


def _certified(kind: str, merged: str | None, changed: float, shift: float) -> dict:
    exact = changed == 0
    verdict = "exact" if exact else "approximate"
    return {
        "kind": kind,
        "side": "input",
        "merged": merged,
        "precision": merged or "fp32",
        "hashes": {
            "base": "ba5e",
            "quantisation": None,
            "adapter": "ada9",
            "bases": None,
            "head": "4ead",
            "protected_prompts": "1234",
            "heldout_prompts": "5678",
        },
        "shield": None,
        "modules": {},
        "protected": _drift(changed / 2, shift),
        "heldout": {**_drift(changed, shift), **_statements(changed)},
        "verdict": {"protected": verdict, "heldout": verdict},
        "rule": "exact: the ranking never reads the adapter. Everything else is approximate.",
        "sentence": f"Promised: nothing | measured: {changed:.1%} changed, merged {merged}.",
    }


def _drift(changed: float, shift: float) -> dict:
    return {
        "users": USERS,
        "max_score_change": 3.0 * changed,
        "mean_score_change": 0.5 * changed,
        "top10_identical": 1 - round(changed * USERS) / USERS,
        "kendall_tau": 1 - 0.21234567 * changed,
        "ndcg_users": USERS,
        "ndcg_change": shift,
        "ndcg_low": shift - 4e-3,
        "ndcg_high": shift + 4e-3,
        "hr_change": 2 * shift,
        "score_std": 1.1,
        "bit_identical": changed == 0,
    }


def _statements(changed: float) -> dict:
    users = round(changed * USERS)
    share = users / USERS
    return {
        "conformal": {"alpha": 0.05, "n": USERS, "quantile": 2.5 * changed, "note": "a bound"},
        "changed_top10": {
            "alpha": 0.05,
            "n": USERS,
            "users": users,
            "share": share,
            "low": max(0.0, share - 0.05),
            "high": min(1.0, share + 0.06),
        },
    }


def _audit(folder: Path, rng: np.random.Generator) -> dict:
    inputs = {
        name: hashlib.sha256((folder / file).read_bytes()).hexdigest()
        for name, file in (("explanations", "explanations.jsonl"), ("rankings", "rankings.parquet"))
    }
    toxicity = {"mean": _change(float(rng.uniform(0.03, 0.06)), 0.01), "p95": 0.11, "max": 0.3}
    privacy = {"leak_rate": 0.0, "leak_rate_upper": 0.0231, "copied_share": 0.0078}
    return {
        "seed": 42,
        "inputs": inputs,
        "toxicity": {"before": toxicity, "after": toxicity},
        "popularity": {"before": {"gini": 0.71}, "after": {"gini": 0.72}},
        "privacy": {"before": privacy, "after": privacy},
        "findings": [],
    }


@pytest.fixture
def study(tmp_path) -> Study:
    """Fifteen runs on three datasets, given in no useful order."""
    pairs = [build_run(tmp_path / "results", *names) for names in STUDY]
    stats = []
    for dataset in LEVELS:
        stats.append(tmp_path / "results" / "data" / dataset / "stats.json")
        about = {"dataset": dataset, "synthetic": True, "sequential": dataset != "steam"}
        write_json(stats[-1], about | {"users": KEPT[dataset]})
    return Study([run for run, _ in pairs], [audit for _, audit in pairs], stats)


@pytest.fixture
def extended(study, tmp_path) -> Callable[..., Study]:
    """The study with further runs, put first: (dataset, variant, seed) each."""

    def extend(*names: tuple[str, str, int]) -> Study:
        pairs = [build_run(tmp_path / "results", *one) for one in names]
        return study._replace(
            runs=[*(run for run, _ in pairs), *study.runs],
            audits=[*(audit for _, audit in pairs), *study.audits],
        )

    return extend
