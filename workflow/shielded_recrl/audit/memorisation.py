"""Memorisation: exposure of planted canaries, and membership inference against the base model.

In: losses of canaries and of the codes they could have had, before and after training; losses of
users' prompts under base and adapter. Out: how many bits of a secret are given away (Carlini et al.
2019, "The Secret Sharer"), and how well the fall of the loss tells who was trained on: area under
the ROC curve, and true positives at a low false-positive rate (Carlini et al. 2022, "Membership
Inference Attacks From First Principles").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shielded_recrl.statistics import Interval

FALSE_POSITIVE_RATES = (0.01, 0.05)


def exposure(loss: float, alternatives: Sequence[float] | np.ndarray) -> float:
    """Bits that a model gives away of a secret: log2 |R| - log2 rank.

    R is the secret and its alternatives; the rank counts from 1, the least loss first. Ties are
    counted against us: a secret goes before an alternative of equal loss.

    >>> exposure(1.0, [2.0, 2.0, 3.0]), exposure(2.0, [1.0, 2.0, 3.0]), exposure(9.0, [1.0])
    (2.0, 1.0, 0.0)
    """
    losses = np.asarray(alternatives, dtype=np.float64)
    rank = 1 + int((losses < loss).sum())
    return math.log2(len(losses) + 1) - math.log2(rank)


def chance_exposure(alternatives: int) -> float:
    """Expected exposure of a secret that the model knows nothing of: its rank is uniform.

    >>> round(chance_exposure(1000), 3)
    1.436
    """
    size = alternatives + 1
    return math.log2(size) - math.lgamma(size + 1) / math.log(2) / size


def canary_report(section: Mapping[str, Any] | None) -> dict[str, Any]:
    """Exposure of canaries by how often training showed them, before and after.

    Args:
        section: `canaries` of probes.json: {"candidates", "rows": [{"repeats", "before",
            "after"}]}, or None.

    Returns:
        {"evaluable": False, "reason"} without canaries. Else the expected exposure by chance, the
        largest there can be, means by repeats, mean and largest before and after, and the canary
        that rose most.
    """
    if section is None or not section["rows"]:
        return {
            "evaluable": False,
            "reason": "no canary was planted in the training text of this base LM "
            "(explainer.pretrain.canaries)",
        }
    rows, candidates = section["rows"], int(section["candidates"])

    def mean(when: str, chosen: Sequence[Mapping[str, Any]]) -> float:
        return float(np.mean([row[when] for row in chosen]))

    rose = max(rows, key=lambda row: row["after"] - row["before"])
    groups = {
        repeats: [row for row in rows if row["repeats"] == repeats]
        for repeats in sorted({int(row["repeats"]) for row in rows})
    }
    return {
        "evaluable": True,
        "canaries": len(rows),
        "candidates": candidates,
        "chance": chance_exposure(candidates),
        "ceiling": math.log2(candidates + 1),
        "repeats": [
            {
                "repeats": repeats,
                "canaries": len(group),
                "before": mean("before", group),
                "after": mean("after", group),
            }
            for repeats, group in groups.items()
        ],
        **{
            when: {"mean": mean(when, rows), "max": float(max(row[when] for row in rows))}
            for when in ("before", "after")
        },
        "largest_rise": {key: rose[key] for key in ("repeats", "before", "after")},
    }


def membership_report(
    rows: Sequence[Mapping[str, Any]], resamples: int, seed: int
) -> dict[str, Any]:
    """How well base loss minus adapter loss tells users of the rollouts from held-out ones.

    Args:
        rows: `membership` of probes.json: {"member", "base", "adapter"}, losses in nats a token.
        resamples: bootstrap samples, members and non-members drawn apart.
        seed: of the resampling.

    Returns:
        auc with its interval, true-positive rates by false-positive rate, the mean fall of the loss
        of both sides; {"evaluable": False, "reason"} where a side is empty.
    """
    fall = np.array([row["base"] - row["adapter"] for row in rows], dtype=np.float64)
    member = np.array([bool(row["member"]) for row in rows], dtype=bool)
    members, others = fall[member], fall[~member]
    if not len(members) or not len(others):
        return {
            "evaluable": False,
            "reason": f"{len(members)} members and {len(others)} non-members: both are needed",
        }
    return {
        "evaluable": True,
        "members": len(members),
        "nonmembers": len(others),
        "auc": auc_interval(members, others, resamples, seed)._asdict(),
        "tpr": {f"{rate:g}": tpr_at(members, others, rate) for rate in FALSE_POSITIVE_RATES},
        "loss_fall": {"members": float(members.mean()), "nonmembers": float(others.mean())},
    }


def auc_interval(members: np.ndarray, others: np.ndarray, resamples: int, seed: int) -> Interval:
    """Area under the ROC curve, P(member > other) + P(equal) / 2, with its 95% bootstrap interval.

    Args:
        members: scores of members, [m].
        others: scores of non-members, [n].
        resamples: bootstrap samples; both sides are drawn apart, so that neither is ever empty.
        seed: of the resampling.
    """
    m, n = len(members), len(others)
    wins = (np.sign(members[:, None] - others[None, :]) + 1) / 2
    rng = np.random.default_rng(seed)
    times_m = rng.multinomial(m, np.full(m, 1 / m), size=resamples)
    times_n = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    values = ((times_m @ wins) * times_n).sum(axis=1) / (m * n)
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(wins.mean()), float(low), float(high))


def tpr_at(members: np.ndarray, others: np.ndarray, false_positive_rate: float) -> float:
    """Share of members above the least threshold that at most this share of non-members is above.

    >>> tpr_at(np.array([3.0, 1.5, 0.0]), np.array([2.0, 1.0, 0.5, 0.1]), 0.25)
    0.6666666666666666
    """
    # Of 100 non-members one may be above at a rate of 0.01, though 0.01 * 100 could fall short of 1.
    allowed = math.floor(false_positive_rate * len(others) + 1e-9)
    threshold = np.sort(others)[::-1][allowed] if allowed < len(others) else -math.inf
    return float((members > threshold).mean())
