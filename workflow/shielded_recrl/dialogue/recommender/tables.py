"""How well systems rank, for people: a page of every number, and a line of one metric.

In: what `evaluation.evaluate` reports. Out: Markdown, a table for each group of targets with a
metric a row and a system a column; or a line that has the baselines beside the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shielded_recrl.dialogue.recommender.metrics import CUTOFFS
from shielded_recrl.markdown import table

OURS, BASELINE = "recommender", "cooccurrence"
ORDER = (OURS, "stage1", BASELINE, "popularity", "copy")
METRICS = (
    *(f"{kind}@{k}" for kind in ("recall", "ndcg", "mrr", "recall_true") for k in CUTOFFS),
    "auc",
)
MEANING = {
    "new": "films that no earlier turn names, among all such",
    "repeats": "films named before, among all films",
    "all": "every target, among all films",
}
NONE = "–"

Estimate = Mapping[str, float]


def page(groups: Mapping[str, Any], candidates: int) -> str:
    """Every metric of the test split, by group.

    Args:
        groups: report of a split.
        candidates: films of the catalogue.
    """
    lines = [
        "# Recommended films, test split",
        "",
        f"{candidates:,} films in all; means over targets with 95% intervals, dialogues drawn. The",
        "last column is the paired difference. `recall_true` is over the films that the seeker liked,",
        "`auc` over liked against disliked ones.",
    ]
    for name, meaning in MEANING.items():
        group = groups[name]
        lines += [
            "",
            f"## {name}: {group['targets']:,} targets of {group['dialogues']:,} dialogues",
        ]
        lines += ["", f"{meaning[0].upper()}{meaning[1:]}.", "", *_rows(group)]
    return "\n".join(lines) + "\n"


def line(systems: Mapping[str, Mapping[str, Estimate | None]], metric: str) -> str:
    """One metric of all systems.

    >>> line({"ours": {"auc": {"mean": 0.5, "low": 0.4, "high": 0.6}}, "other": {}}, "auc")
    'auc: ours 0.500 [0.400, 0.600], other –'
    """
    found = (f"{name} {cell(metrics.get(metric))}" for name, metrics in systems.items())
    return f"{metric}: {', '.join(found)}"


def cell(value: Estimate | None, sign: str = "") -> str:
    """A mean with its interval.

    >>> cell({"mean": 0.25, "low": 0.0, "high": 0.5}, "+")
    '+0.250 [+0.000, +0.500]'
    """
    if value is None:
        return NONE
    mean, low, high = (f"{value[key]:{sign}.3f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _rows(group: Mapping[str, Any]) -> list[str]:
    if not group["targets"]:
        return ["None."]
    systems = [name for name in ORDER if name in group["systems"]]
    lead = group["ahead_of"][BASELINE]
    return table(
        ["", *systems, f"{OURS} - {BASELINE}"],
        (
            [
                metric,
                *(cell(group["systems"][name][metric]) for name in systems),
                # There is no paired difference of AUC.
                cell(lead[metric], "+") if metric in lead else "",
            ]
            for metric in METRICS
        ),
    )
