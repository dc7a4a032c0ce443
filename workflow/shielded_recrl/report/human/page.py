"""The scores of a sheet as a page of Markdown.

In: the document of `preferences.evaluate`. Out: text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shielded_recrl.markdown import in_cell, table


def to_markdown(scores: Mapping[str, Any], title: str, notes: Sequence[str] = ()) -> str:
    """The Markdown page.

    Args:
        scores: document of `preferences.evaluate`.
        title: heading of the page.
        notes: further sentences to put under the heading.
    """
    parts = [
        f"# {title}\n",
        f"Question: {in_cell(scores['question'])}\n",
        "Brackets are 95% bootstrap intervals over users. Repeats and attention checks are no part "
        f"of them, and neither are pairs with identical texts. Where all answers are alike, resampling finds no "
        f"spread: go by the counts. {scores['regularisation']}\n",
        *(f"{note}\n" for note in notes),
        "## Raters\n",
        *table(
            ("rater", "left", "right", "tie", "missing", "attention checks", "repeats", "counted"),
            [_rater(one) for one in scores["raters"]],
        ),
        "",
    ]
    for dataset, one in scores["datasets"].items():
        parts += [f"## {in_cell(dataset)}\n", *_dataset(one)]
    return "\n".join(parts)


def _rater(one: Mapping[str, Any]) -> list[str]:
    return [
        in_cell(one["name"]),
        *(str(one["answers"][answer]) for answer in ("left", "right", "tie")),
        str(len(one["missing"])),
        f"{one['checks_passed']} of {one['checks']} passed",
        f"{one['repeats_same']} of {one['repeats']} answered alike",
        "no: too few attention checks passed" if one["excluded"] else "yes",
    ]


def _dataset(one: Mapping[str, Any]) -> list[str]:
    if not one["votes"]:
        return ["No answer.\n"]
    found = one["agreement"]
    said = (
        f"Krippendorff's alpha {_interval(found['alpha'])} over {found['rows']} rows that two raters "
        f"or more answered, of {found['raters']} raters.\n"
        if found
        else "Agreement is not defined: fewer than two raters of a row, or all answers alike.\n"
    )
    return [
        f"{one['votes']} answers about {one['users']} users. {said}",
        *table(
            ("A", "B", "A preferred", "A wins", "ties", "B wins", "users", "identical texts"),
            [
                [
                    in_cell(pair["a"]),
                    in_cell(pair["b"]),
                    _interval(pair["win_rate"]),
                    str(pair["a_wins"]),
                    str(pair["ties"]),
                    str(pair["b_wins"]),
                    str(pair["users"]),
                    f"{pair['identical']} of {pair['contexts']}",
                ]
                for pair in one["comparisons"]
            ],
        ),
        "",
        *table(
            ("system", "Bradley-Terry strength (log-odds)"),
            [
                [in_cell(name), _interval(strength)]
                for name, strength in sorted(
                    one["strengths"].items(), key=lambda entry: -entry[1]["mean"]
                )
            ],
        ),
        "",
    ]


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "no answer"
    return f"{value['mean']:z.3f} [{value['low']:z.3f}, {value['high']:z.3f}]"
