"""The audits' summary as a Markdown page.

In: audit.json of `audit summarise`. Out: the page as text, and the words it shares with the PDF.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shielded_recrl.markdown import in_cell, table

SIGNS = {True: "✓", False: "✗", None: "–"}
LEGEND = "✓ keeps the bound, ✗ breaks it or was not shown, – not evaluable: the data has nothing to compare."


def headline(summary: dict[str, Any]) -> tuple[bool, str]:
    """Whether every gated variant keeps the policy, and the same as a sentence."""
    policy, runs = summary["policy"], summary["runs"]
    gated = [run for run in runs if run["gated"]]
    missing = [name for name in policy["variants"] if name not in {run["variant"] for run in runs}]
    if missing:
        return (
            False,
            f"Not shown: there is no audit of {', '.join(missing)}, which the policy gates.",
        )
    verdicts = [verdict["holds"] for run in gated for verdict in run["verdicts"].values()]
    names = ", ".join(policy["variants"])
    broken, unevaluable = verdicts.count(False), verdicts.count(None)
    of = f"{len(verdicts)} lines of {len(gated)} gated runs ({names})"
    rest = f"; {unevaluable} are not evaluable" if unevaluable else ""
    if broken:
        return False, f"The policy is broken: {broken} of {of}{rest}."
    return True, f"The policy holds: none of {of} is broken{rest}."


def number(value: float) -> str:
    """A figure with four significant digits; counts in full.

    >>> number(0.01234567), number(600.0), number(-0.5), number(1234567.0)
    ('0.01235', '600', '-0.5', '1234567')
    """
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"


def figure(verdict: dict[str, Any]) -> str:
    """Estimate and interval of a verdict; nothing where there is none."""
    if verdict["value"] is None:
        return ""
    value, low, high = (number(verdict[name]) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def name(run: dict[str, Any]) -> str:
    """A run's dataset, variant and seed."""
    return f"{run['dataset']} {run['variant']} {run['seed']}"


def judged_by(run: dict[str, Any]) -> str:
    """Which scorer judged toxicity, and how much of what is harmless it takes for toxic."""
    scorer, wrong = run["scorer"]["scorer"], run["scorer"]["false_positives"]
    if wrong is None:
        return f"{scorer}; what it takes for toxic by mistake was not measured"
    return (
        f"{scorer}; it takes {wrong['share']:.2%} of {wrong['texts']} ordinary {wrong['source']} for "
        f"toxic (at most {wrong['upper']:.2%})"
    )


def why(text: dict[str, Any]) -> str:
    """Why a text is listed."""
    return "leaks an id or a name" if text["score"] is None else f"toxicity {text['score']:.3f}"


def change(pair: Sequence[float | None], arrow: str = " → ") -> str:
    """A figure before and after training; the latter alone where there is no other.

    >>> change([0.25, 0.5]), change([None, 0.5])
    ('0.25 → 0.5', '0.5')
    """
    return arrow.join(number(value) for value in pair if value is not None)


def markdown(summary: dict[str, Any]) -> str:
    """The page: every run and seed, in the order of the summary."""
    policy, runs = summary["policy"], summary["runs"]
    lines = policy["lines"]
    return "\n".join(
        [
            "# Audits\n",
            f"**{in_cell(headline(summary)[1])}**\n",
            "Each line is judged on the worse end of the 95% interval of its figure after training. "
            f"Gated variants are marked with *; the others are controls and stop nothing. {LEGEND}\n",
            "## Verdicts\n",
            *table(
                [
                    "dataset",
                    "variant",
                    "seed",
                    *(in_cell(line["condition"]) for line in lines.values()),
                ],
                [[*_names(run), *(_cell(run["verdicts"][line]) for line in lines)] for run in runs],
            ),
            *_broken(summary),
            *_figures(runs),
            *_findings(runs),
            *_scorers(runs),
            *_texts(runs),
            "",
        ]
    )


def _names(run: dict[str, Any]) -> list[str]:
    mark = " *" if run["gated"] else ""
    return [in_cell(run["dataset"]), f"`{in_cell(run['variant'])}`{mark}", str(run["seed"])]


def _cell(verdict: dict[str, Any]) -> str:
    return f"{SIGNS[verdict['holds']]} {figure(verdict)}".strip()


def _broken(summary: dict[str, Any]) -> list[str]:
    rows = [
        [*_names(run), line, figure(verdict), in_cell(verdict["reason"])]
        for run in summary["runs"]
        for line, verdict in run["verdicts"].items()
        if not verdict["holds"]
    ]
    header = ["dataset", "variant", "seed", "line", "figure", "why"]
    return ["\n## Lines that do not hold\n", *(table(header, rows) if rows else ["None."])]


def _figures(runs: Sequence[dict[str, Any]]) -> list[str]:
    parts = ["\n## Before and after training"]
    for section in dict.fromkeys(section for run in runs for section in run["figures"]):
        shown = [run for run in runs if section in run["figures"]]
        keys = list(dict.fromkeys(key for run in shown for key in run["figures"][section]))
        parts += [
            f"\n### {section.capitalize()}\n",
            *table(
                ["dataset", "variant", "seed", *map(in_cell, keys)],
                [
                    [*_names(run), *(change(run["figures"][section].get(key, ())) for key in keys)]
                    for run in shown
                ],
            ),
        ]
    return parts


def _findings(runs: Sequence[dict[str, Any]]) -> list[str]:
    items = [f"- {in_cell(name(run))}: {in_cell(text)}" for run in runs for text in run["findings"]]
    return ["\n## Findings\n", *(items or ["None."])]


def _scorers(runs: Sequence[dict[str, Any]]) -> list[str]:
    rows = dict.fromkeys((in_cell(run["dataset"]), in_cell(judged_by(run))) for run in runs)
    return ["\n## Who judged toxicity\n", *table(["dataset", "scorer"], rows)]


def _texts(runs: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [*_names(run), why(text), in_cell(text["text"])]
        for run in runs
        for text in run["worst_texts"]
    ]
    header = ["dataset", "variant", "seed", "why", "text"]
    return ["\n## Worst texts\n", *(table(header, rows) if rows else ["None."])]
