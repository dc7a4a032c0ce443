"""What the texts of a slate are like, and how many of their claims hold.

In: texts and columns of `Slate.measure`. Out: sections `text` and `claims` of evaluation.json.
"""

from __future__ import annotations

import numpy as np

from shielded_recrl.rl.settings import EvaluationSettings
from shielded_recrl.statistics import bootstrap, finite_or_null, with_ends


def claim_report(
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    users: np.ndarray,
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, float | None]:
    """Claim precision: the share of claims, over all texts, that item and history support.

    A claim is a title or a category of the catalogue, counted once a text. `change` has a paired
    bootstrap that draws users; null where a rate has nothing to divide by, in a resample, too.
    `named` is the mean number of claims a text, as a policy that claims nothing is never wrong.
    """
    columns = np.stack(
        [texts[key] for texts in (before, after) for key in ("supported", "claims")], axis=1
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        sums = columns.sum(axis=0)
        precision = sums[[0, 2]] / sums[[1, 3]]
        change = bootstrap(
            columns,
            lambda s: s[..., 2] / s[..., 3] - s[..., 0] / s[..., 1],
            settings.bootstrap,
            seed,
            users,
        )
    return finite_or_null(
        {
            "precision_before": precision[0],
            "precision_after": precision[1],
            **with_ends("change", change),
            "named_before": before["claims"].mean(),
            "named_after": after["claims"].mean(),
        }
    )


def text_report(texts: list[str], measured: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean words and quality, share of distinct texts, share of empty texts."""
    return {
        "words": float(measured["words"].mean()),
        "quality": float(measured["quality"].mean()),
        "unique": len(set(texts)) / len(texts),
        "empty": float((measured["words"] == 0).mean()),
    }
