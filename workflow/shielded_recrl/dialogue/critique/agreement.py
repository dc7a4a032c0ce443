"""How judges agree with what is known of responses, and with each other.

In: a table of judged responses. Out: for each judge and head the AUC by which
people's responses have more than sampled ones and than those of each fault, and sampled ones more
than faulty ones; and for each two judges the rank correlation by head. Intervals are 95% bootstrap
ones over dialogues.

The AUC compares answers to the same turn: the share of pairs in which the better has more, ties by
half. The rank correlation (Spearman) is that of ranks over all responses that both judged, and over
sampled ones alone, among which a policy learns.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import rankdata

from shielded_recrl.dialogue.critique.gate import above
from shielded_recrl.dialogue.critique.judged import CORRUPTED, GOLD, SAMPLED, judges_of
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.statistics import bootstrap


def agreement(table: pl.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    """Orders by judge and head, and rank correlations by two judges and head."""
    judges = judges_of(table.columns)
    return {
        "orders": {judge: orders(table, judge, resamples, seed) for judge in judges},
        "rank_correlations": {
            f"{one} and {other}": {
                head: {
                    "all": correlation(table, one, other, head, resamples, seed),
                    SAMPLED: correlation(
                        table.filter(pl.col("kind") == SAMPLED), one, other, head, resamples, seed
                    ),
                }
                for head in HEADS
            }
            for one, other in combinations(judges, 2)
        },
    }


def orders(table: pl.DataFrame, judge: str, resamples: int, seed: int) -> dict[str, Any]:
    """AUC of gold over each other kind, and of sampled over each fault, by head."""
    kinds = [kind for kind in dict.fromkeys(table["kind"]) if kind != GOLD]
    found: dict[str, Any] = {}
    for head in HEADS:
        part = table.drop_nulls(f"{judge}_{head}")
        values = part[f"{judge}_{head}"].to_numpy()
        # `above` compares with gold, so for the second order sampled ones stand in its place.
        second = part.with_columns(kind=pl.col("kind").replace({GOLD: SAMPLED, SAMPLED: GOLD}))
        found[head] = {}
        for kind in kinds:
            for name, rows in ((GOLD, part), (SAMPLED, second)):
                if name == SAMPLED and not kind.startswith(CORRUPTED):
                    continue
                if rows["kind"].is_in([kind]).any() and rows["kind"].is_in([GOLD]).any():
                    share, pairs = above(rows, values, kind, resamples, seed)
                    found[head][f"{name} > {kind}"] = share | {"pairs": pairs}
    return found


def correlation(
    table: pl.DataFrame, one: str, other: str, head: str, resamples: int, seed: int
) -> dict[str, float] | None:
    """Spearman's rank correlation of two judges; None where one of them has one rank alone."""
    part = table.drop_nulls([f"{one}_{head}", f"{other}_{head}"])
    ranks = [rankdata(part[f"{judge}_{head}"].to_numpy()) for judge in (one, other)]
    if len(part) < 2 or any(np.ptp(values) == 0 for values in ranks):
        return None
    x, y = (values / len(part) for values in ranks)
    columns = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    return bootstrap(columns, _pearson, resamples, seed, part["dialogue"].to_numpy())._asdict()


def _pearson(sums: np.ndarray) -> np.ndarray:
    """Correlation from sums [..., 6] of 1, x, y, xx, yy, xy; 0 where one does not vary."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(np.maximum(xx / n - (x / n) ** 2, 0) * np.maximum(yy / n - (y / n) ** 2, 0))
    return np.divide(xy / n - x * y / n**2, spread, out=np.zeros_like(n), where=spread > 1e-12)
