"""A study on disk, exactly as training, evaluation, audit and data preparation leave it."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

import audit_document
from audit_document import POLICY, interval
from shielded_recrl.audit.policy import load_policy
from shielded_recrl.audit.summarise import summarise
from shielded_recrl.files import atomic, read_json, sha256, write_json, write_jsonl

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


# Scores against references, and what the control by another item's references leaves of them.
SCORES = {"bleu_1": 21.0, "bleu_4": 3.1, "rouge_1": 24.0, "rouge_2": 4.2, "rouge_l": 19.0}
SHUFFLED, CONSTANT = 0.72, 0.85
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)
SIMULATORS = ("claims", "examination")


class Study(NamedTuple):
    """Paths to give to `report aggregate`."""

    runs: list[Path]
    audits: list[Path]
    stats: list[Path]
    summary: Path


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
            "ctr_examination": 0.8 * click * (1 + 0.7 * lift * (1 - np.exp(-step / 8))),
            "quality": 0.4 + 0.01 * step,
            "quality_examination": 0.42 + 0.008 * step,
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
    clicks = {
        "claims": _clicks(click, curve[-1]["ctr"] / click, 0.02),
        "examination": _clicks(0.8 * click, curve[-1]["ctr_examination"] / (0.8 * click), 0.018),
    }
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
            "ndcg_change": interval(shift, 8e-3 if moved else 0.0 if exact else 4e-4),
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
            "ctr": clicks["claims"],
            "simulators": clicks,
            "quality_weight_sweep": [
                {"simulator": name, "weight": weight}
                | _clicks(click, 1 + weight * (clicks[name]["relative"] - 1), 0.02 * weight)
                for name in SIMULATORS
                for weight in WEIGHTS
            ],
            "calibration": {
                name: {
                    source: {when: _calibration(offset, rng) for when in ("before", "after")}
                    for source, offset in (
                        ("own", 0.0),
                        ("reward", 0.11 - 0.05 * (name == "claims")),
                    )
                }
                for name in SIMULATORS
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
            "texts": _texts(dataset, lift),
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
                **{"step": step, "user": 100 + place // 4, "item": place + 1},
                "position": place % 4 + 1,
                "title": f"Title {place}",
                "categories": ["Drama", "War"],
                "history": ["Past | one", "<b>Past</b> two"],
                "text": f"Text {place} of {digest.hexdigest()[:6]} at {step}.",
                **{"quality": place / 20, "quality_examination": place / 24},
                **{"propensity": click, "clicks": click, "clicks_examination": 0.8 * click},
            }
            for step in (0, STEPS)
            for place in range(12)
        ],
    )
    _write_people(folder, shift, rng)
    audit = root / "audit" / dataset / variant / f"seed-{seed}" / "audit.json"
    write_json(audit, _audit(folder, dataset, variant, seed, rng))
    return folder, audit


def _clicks(before: float, relative: float, half: float) -> dict[str, float]:
    """What `rl evaluate` says of one simulator; perfect texts would bring 16% more clicks."""
    share = (relative - 1) / 0.16
    return {
        "before": before,
        "after": before * relative,
        **{"relative": relative, "relative_low": relative - half, "relative_high": relative + half},
        "attainable": 1.16,
        **{"lift_share": share, "lift_share_low": share - 0.1, "lift_share_high": share + 0.1},
        "from_empty": 1.24,
        "published_share": 0.225 / 0.16,
    }


def _calibration(offset: float, rng: np.random.Generator) -> dict:
    """Bins in which the observed rate lies above the predicted one by `offset`, but for noise."""
    observed = [0.15 + 0.1 * place + offset + rng.normal(0, 0.004) for place in range(5)]
    bins = [
        {"predicted": 0.15 + 0.1 * place, "observed": rate, "count": 100 * (5 - abs(place - 2))}
        for place, rate in enumerate(observed)
    ]
    total = sum(one["count"] for one in bins)
    ece = sum(one["count"] * abs(one["observed"] - one["predicted"]) for one in bins) / total
    return {"ece": ece, "ece_low": 0.8 * ece, "ece_high": 1.3 * ece, "bins": bins}


def _texts(dataset: str, lift: float) -> dict:
    """Text metrics; only Books has reviews to compare with."""
    judged = dataset == "books"

    def scores(factor: float | None) -> dict[str, float | None]:
        return {
            **{name: value * factor if factor else None for name, value in SCORES.items()},
            "bertscore": None,
        }

    def side(factor: float) -> dict:
        own = factor if judged else None
        return {
            "references": 12 if judged else 0,
            **scores(own),
            **{"fmr": 0.4 * factor, "fcr": 0.3, "div": 0.8, "usr": 0.9},
            **{"distinct_1": 0.31, "distinct_2": 0.62},
            "rouge_l_minus_shuffled": interval(0.28 * SCORES["rouge_l"] * factor) if own else None,
            "shuffled": {**scores(own and SHUFFLED * own), "fmr": 0.1},
            "constant": {**scores(CONSTANT), "fmr": 0.05, "sentence": "Good."} if own else None,
        }

    return {
        "texts": 12,
        "own": 4 if judged else 0,
        "reason": None if judged else "the source has no reviews",
        "before": side(1.0),
        "after": side(1.0 + 2 * lift),
    }


def _write_people(folder: Path, shift: float, rng: np.random.Generator) -> None:
    """users.parquet and rankings.parquet of eight held-out users and one protected."""
    users = [*range(100, 108), 900]
    roles = ["heldout"] * 8 + ["protected"]
    before = rng.uniform(0.2, 0.6, len(users))
    tables = {
        "users": pl.DataFrame(
            {
                "user": pl.Series(users, dtype=pl.Int32),
                "role": roles,
                "ndcg_before": before,
                "ndcg_after": before + shift,
                "hr_before": 1.0,
                "hr_after": 1.0,
            }
        ),
        "rankings": pl.DataFrame(
            [
                (step, role, user, position, position)
                for step in (0, STEPS)
                for user, role in zip(users, roles, strict=True)
                for position in range(1, 11)
            ],
            schema={"step": pl.Int32, "role": pl.String}
            | dict.fromkeys(("user", "position", "item"), pl.Int32),
            orient="row",
        ),
    }
    for name, table in tables.items():
        with atomic(folder / f"{name}.parquet") as partial:
            table.write_parquet(partial)


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


def _audit(folder: Path, dataset: str, variant: str, seed: int, rng: np.random.Generator) -> dict:
    """A sound audit, but that `no_proj` moves exposure; only Books has groups of users."""
    moved = 0.03 if variant == "no_proj" else 0.001
    changes = {
        "toxicity.after.mean": interval(float(rng.uniform(0.03, 0.06))),
        "popularity.change.gini": interval(float(rng.normal(moved, 2e-3)), 0.004),
        "privacy.after": {"leaked_texts": [], "copied_share": 0.0078},
        "grounding.paired_minus_shuffled": interval(float(rng.uniform(0.08, 0.2)), 0.03),
    }
    if dataset != "books":
        nothing = {"gap": None, "reason": "no grouping of these users is evaluable"}
        changes["fairness"] = {"users": 9, "groupings": {}, **nothing}
    inputs = {
        name: sha256(folder / file)
        for name, file in (("explanations", "explanations.jsonl"), ("rankings", "rankings.parquet"))
    }
    run = {"dataset": dataset, "variant": variant, "seed": seed}
    return audit_document.audit(changes, **run, inputs=inputs)


def _stats(dataset: str) -> dict:
    """stats.json of embedded data."""
    return {
        "dataset": dataset,
        "synthetic": True,
        "sequential": dataset != "steam",
        "users": KEPT[dataset],
        "items": 240,
        **{"rows_read": 9000, "kept": 8448, "density": 8448 / (KEPT[dataset] * 240)},
        "dropped": {"no user": 2, "outside the k-core": 550},
        "splits": {"train": 7000, "valid": 724, "test": 724},
        "inputs": {"ratings.csv": "c0ffee" * 10},
    }


def _summary(root: Path, audits: list[Path]) -> Path:
    """audit.json of `audit summarise`, without its page and PDF."""
    pairs = [(path, read_json(path)) for path in audits]
    out = root / "audit" / "audit.json"
    write_json(out, summarise(pairs, load_policy(POLICY), POLICY))
    return out


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """Fifteen runs on three datasets; only copied from."""
    root = tmp_path_factory.mktemp("study") / "results"
    for names in STUDY:
        build_run(root, *names)
    for dataset in LEVELS:
        write_json(root / "data" / dataset / "stats.json", _stats(dataset))
    return root


@pytest.fixture
def study(built, tmp_path) -> Study:
    """Fifteen runs on three datasets, given in no useful order."""
    root = tmp_path / "results"
    shutil.copytree(built, root)
    runs = [root / "rl" / dataset / variant / f"seed-{seed}" for dataset, variant, seed in STUDY]
    audits = [root / "audit" / run.relative_to(root / "rl") / "audit.json" for run in runs]
    stats = [root / "data" / dataset / "stats.json" for dataset in LEVELS]
    return Study(runs, audits, stats, _summary(root, audits))


@pytest.fixture
def extended(study, tmp_path) -> Callable[..., Study]:
    """The study with further runs, put first: (dataset, variant, seed) each."""

    def extend(*names: tuple[str, str, int]) -> Study:
        root = tmp_path / "results"
        pairs = [build_run(root, *one) for one in names]
        audits = [*(audit for _, audit in pairs), *study.audits]
        return study._replace(
            runs=[*(run for run, _ in pairs), *study.runs],
            audits=audits,
            summary=_summary(root, audits),
        )

    return extend
