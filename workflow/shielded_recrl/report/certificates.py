"""Certificates of all runs on one page: what is promised, and what was measured.

In: finished runs. Out: a Markdown page with the verdicts and the sentence of each run, then the
drift of every merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shielded_recrl.errors import UserError
from shielded_recrl.markdown import in_cell, table
from shielded_recrl.report.runs import COHORTS, Run

# What an adapter may be merged into, and the kinds of shield that forbid it.
PRECISIONS = ("fp32", "bf16", "nf4")
UNMERGEABLE = ("separate", "activated")
VERDICTS = ("exact", "approximate")
DRIFT = ("top10_identical", "max_score_change", "ndcg_change")


def merge_of(run: Run, precision: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """Certificate of the adapter merged into a precision, or None and why there is none.

    Raises:
        UserError: the certificate tells neither what was measured nor why nothing was.
    """
    merges = _merges(run)
    kind = run.certificate.get("kind")
    if kind in UNMERGEABLE:
        return None, f"not mergeable: the shield {kind} keeps the adapter out of the ranking"
    if precision not in merges:
        missing = (
            f"{precision} is not in evaluation.merge" if merges else "evaluation.merge is empty"
        )
        return None, f"not measured: {missing}"
    merge = merges[precision]
    if isinstance(merge, dict) and isinstance(merge.get("verdict"), dict):
        return merge, None
    if isinstance(merge, dict) and isinstance(merge.get("sentence"), str):
        return None, merge["sentence"]
    raise UserError(
        f"{run.folder / 'certificate.json'}: 'merges.{precision}' has neither a verdict nor a "
        "sentence; evaluate the run again"
    )


def page(runs: Sequence[Run]) -> str:
    """The Markdown page.

    Raises:
        UserError: a certificate lacks a verdict, its sentence, its rule or a figure of a merge.
    """
    rules = dict.fromkeys(_text(run, "rule") for run in runs)
    promised = [[*_names(run), *_verdicts(run), in_cell(_text(run, "sentence"))] for run in runs]
    merged = [
        [*_names(run), precision or "nothing", *_merge_cells(run, precision)]
        for run in runs
        for precision in [p for p in PRECISIONS if p in _merges(run)] or [None]
    ]
    return "\n".join(
        [
            "# Certificates\n",
            "What the shield of each run promises about the served ranking, and what was measured: "
            "the ranking served after training against the one served before, on protected users, of "
            "whose prefixes bases are made, and on held-out users, who are in no basis, read-out or "
            "rollout.\n",
            *(f"{in_cell(rule)}\n" for rule in rules),
            *table(
                ["dataset", "variant", "seed", "protected", "held out", "in one sentence"], promised
            ),
            "\n## After a merge\n",
            "The adapter merged into the base LM, served in the precision named, against the base "
            "served in the same precision. A certificate of the unmerged adapter says nothing "
            "about it: weights are rounded anew.\n",
            *table(
                [
                    *("dataset", "variant", "seed", "merged into"),
                    *(
                        f"{role}: {what}"
                        for role in ("protected", "held out")
                        for what in ("top 10 identical", "largest score change", "NDCG@10 change")
                    ),
                    "remark",
                ],
                merged,
            ),
            "",
        ]
    )


def _merge_cells(run: Run, precision: str | None) -> list[str]:
    merge, reason = merge_of(run, precision)
    if merge is None:
        return [""] * (len(COHORTS) * len(DRIFT)) + [in_cell(reason)]
    cells = []
    for role in COHORTS:
        try:
            same, moved, ndcg = (merge[role][key] for key in DRIFT)
            cells += [f"{same:.1%}", f"{moved:.3g}", "" if ndcg is None else f"{ndcg:+.4f}"]
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{run.folder / 'certificate.json'}: 'merges.{precision}.{role}' needs the numbers "
                f"{', '.join(DRIFT)}; evaluate the run again"
            ) from None
    return [*cells, ""]


def _merges(run: Run) -> dict[str, Any]:
    """The run's merges by precision; none where the adapter cannot be merged."""
    merges = run.certificate.get("merges")
    if merges is None and run.certificate.get("kind") in UNMERGEABLE:
        return {}
    if not isinstance(merges, dict):
        raise UserError(
            f"{run.folder / 'certificate.json'}: 'merges' is {merges!r}, no object of precisions; "
            "evaluate the run again"
        )
    return merges


def _names(run: Run) -> list[str]:
    return [run.dataset, f"`{run.variant}`", str(run.seed)]


def _verdicts(run: Run) -> list[str]:
    verdict = run.certificate.get("verdict")
    found = [verdict.get(role) if isinstance(verdict, dict) else None for role in COHORTS]
    if not all(one in VERDICTS for one in found):
        raise UserError(
            f"{run.folder / 'certificate.json'}: 'verdict' needs {' or '.join(VERDICTS)} for "
            f"{' and '.join(COHORTS)} users; evaluate the run again"
        )
    return found


def _text(run: Run, key: str) -> str:
    if not isinstance(text := run.certificate.get(key), str):
        raise UserError(
            f"{run.folder / 'certificate.json'} lacks the text {key!r}; evaluate the run again"
        )
    return text
