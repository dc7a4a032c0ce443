"""All audits against the policy: one document, one page, one PDF.

In: resources/policy.yaml, and audit.json of every audited run. Out: audit.json with a verdict on
every line for every run, key figures before and after training, findings and worst texts; the same
as a Markdown page with every seed, and as a PDF of a few pages with the worst seed of each variant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shielded_recrl.audit.policy import Policy, judge, load_policy, policy_lines
from shielded_recrl.audit.summary_page import markdown
from shielded_recrl.errors import UserError
from shielded_recrl.files import atomic, named, read_json, sha256, write_json, write_text

# Texts quoted of a run for each reason, and letters of each: enough to judge by, without copying
# what a run wrote.
WORST_TEXTS = 3
QUOTED_LETTERS = 300


class Figure(NamedTuple):
    """A figure before and after training.

    Attributes:
        section: of the audit.
        label: what a reader calls it.
        before, after: dotted paths in the section; None where there is no such figure before.
    """

    section: str
    label: str
    before: str | None
    after: str


FIGURES = (
    Figure("toxicity", "mean", "before.mean", "after.mean"),
    Figure("toxicity", "95th percentile", "before.p95", "after.p95"),
    Figure("toxicity", "largest", "before.max", "after.max"),
    Figure("toxicity", "toxic texts", "before.toxic_share", "after.toxic_share"),
    Figure("popularity", "Gini", "before.gini", "after.gini"),
    Figure(
        "popularity", "mean popularity", "before.average_popularity", "after.average_popularity"
    ),
    Figure("popularity", "coverage", "before.coverage", "after.coverage"),
    Figure("popularity", "long-tail share", "before.long_tail_share", "after.long_tail_share"),
    Figure("popularity", "distance to taste", "before.jensen_shannon", "after.jensen_shannon"),
    Figure("fairness", "group gap", "before.gap", "after.gap"),
    Figure("privacy", "leaking texts", "samples_before.leak_rate", "samples.leak_rate"),
    Figure("privacy", "copied descriptions", "samples_before.copied_share", "samples.copied_share"),
    Figure(
        "privacy",
        "copied reviews",
        "samples_before.copied_review_share",
        "samples.copied_review_share",
    ),
    Figure("privacy", "canary exposure, bits", "canaries.before.mean", "canaries.after.mean"),
    Figure("privacy", "membership AUC", None, "membership.auc"),
    Figure("injection", "attacks", "before.attacked", "after.attacked"),
    Figure("injection", "benign twins", "before.benign", "after.benign"),
    Figure("grounding", "name their item", "before.paired", "after.paired"),
    Figure("grounding", "name another", "before.shuffled", "after.shuffled"),
    Figure("grounding", "repeated", "before.repeated", "after.repeated"),
)


def main(
    *,
    policy: Path,
    audits: tuple[Path, ...],
    out: Path,
    page: Path,
    pdf: Path,
) -> None:
    """Judge every audit by the policy, and sum them up.

    Args:
        policy: YAML file of the policy.
        audits: audit.json of `audit run`, one for each audited run.
        out: JSON file to write.
        page: Markdown page to write.
        pdf: PDF to write.
    """
    summary = summarise([(path, load_audit(path)) for path in audits], load_policy(policy), policy)
    # Its import reads fonts and takes a second; bad input is refused before that.
    from shielded_recrl.audit.summary_pdf import render

    with atomic(pdf) as partial:
        partial.write_bytes(render(summary))
    write_text(page, markdown(summary))
    write_json(out, summary)
    runs = summary["runs"]
    broken = sum(verdict["holds"] is False for run in runs for verdict in run["verdicts"].values())
    gated = sum(run["gated"] for run in runs)
    print(f"{out}: {len(runs)} runs, {gated} of them gated; {broken} lines broken in all")


def load_audit(path: Path) -> dict[str, Any]:
    """Read the audit of one run.

    Raises:
        UserError: the file is missing or damaged, or does not say whose audit it is.
    """
    try:
        audit = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with `audit run`") from None
    for key, kind in {"dataset": str, "variant": str, "seed": int, "findings": list}.items():
        if not isinstance(audit, dict) or not isinstance(audit.get(key), kind):
            raise UserError(
                f"{path}: {key!r} is missing or no {kind.__name__}; make it again with `audit run`"
            )
    return audit


def summarise(
    audits: Sequence[tuple[Path, dict[str, Any]]], policy: Policy, policy_path: Path
) -> dict[str, Any]:
    """Verdicts and key figures of all audits: by dataset, gated variants first, by seed.

    Args:
        audits: path and content of each audit.
        policy: what to judge by.
        policy_path: where the policy is from, for messages.

    Raises:
        UserError: two audits are of one run, or an audit has a figure that is none.
    """
    lines = policy_lines(policy)
    runs: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path, audit in audits:
        run = (audit["dataset"], audit["variant"], audit["seed"])
        if run in runs:
            raise UserError(
                f"{path}: audits the same run as {runs[run]['path']}; give one audit of each run"
            )
        try:
            verdicts = {line.name: judge(audit, line)._asdict() for line in lines}
        except ValueError as error:
            raise UserError(f"{path}: {error}; make it again with `audit run`") from error
        runs[run] = {
            "dataset": audit["dataset"],
            "variant": audit["variant"],
            "seed": audit["seed"],
            "gated": audit["variant"] in policy.variants,
            "path": named(path),
            "sha256": sha256(path),
            "verdicts": verdicts,
            "figures": key_figures(audit),
            "scorer": {
                key: (audit.get("toxicity") or {}).get(key) for key in ("scorer", "false_positives")
            },
            "findings": audit["findings"],
            "worst_texts": worst_texts(audit),
        }
    return {
        "policy": {
            "path": policy_path.as_posix(),
            "sha256": sha256(policy_path),
            "variants": list(policy.variants),
            "lines": {line.name: {**line._asdict(), "condition": str(line)} for line in lines},
        },
        # What the policy holds for comes first.
        "runs": sorted(
            runs.values(),
            key=lambda run: (run["dataset"], not run["gated"], run["variant"], run["seed"]),
        ),
    }


def key_figures(audit: dict[str, Any]) -> dict[str, dict[str, list[float | None]]]:
    """Before and after training, by section and label, of the figures that the audit has.

    >>> key_figures({"toxicity": {"before": {"max": 0.5}, "after": {"max": 0.25, "texts": 7}}})
    {'toxicity': {'largest': [0.5, 0.25]}}
    """
    found: dict[str, dict[str, list[float | None]]] = {}
    for section, label, *paths in FIGURES:
        before, after = (_estimate(audit.get(section), path) for path in paths)
        if after is not None:
            found.setdefault(section, {})[label] = [before, after]
    return found


def worst_texts(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """Texts after training that leak an id or a name, then the most toxic with their scores."""
    toxicity, privacy = (audit.get(name) or {} for name in ("toxicity", "privacy"))
    leaked = (privacy.get("samples") or {}).get("leaked_texts", [])
    toxic = sorted((row["after"] for row in toxicity.get("worst", [])), key=_by_score)
    found = [
        *({"score": None, "text": text} for text in leaked[:WORST_TEXTS]),
        *({"score": one["score"], "text": one["text"]} for one in toxic[:WORST_TEXTS]),
    ]
    return [{**one, "text": shorten(one["text"])} for one in found]


def _by_score(text: dict[str, Any]) -> tuple[float, str]:
    return -text["score"], text["text"]


def shorten(text: str) -> str:
    """The start of a text, with a mark where it was cut.

    >>> shorten("a" * 400)[-3:], len(shorten("a" * 400)), shorten("short")
    ('aa…', 300, 'short')
    """
    return text if len(text) <= QUOTED_LETTERS else text[: QUOTED_LETTERS - 1] + "…"


def _estimate(found: Any, path: str | None) -> float | None:
    """A number, or the mean of an interval, at a dotted path; None where there is none."""
    for part in (path or "").split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, dict):
        found = found.get("mean")
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        return None
    return float(found)
