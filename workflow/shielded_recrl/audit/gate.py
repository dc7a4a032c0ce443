"""Stop where a gated variant breaks a line of the policy.

In: audit.json of `audit summarise`. Out: a file `passed`, with the digest of what was judged and
the lines that held, only where every line of every gated run holds; else one line of text for each
that does not, and exit status 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shielded_recrl.audit.policy import KEYS, MAY_LACK
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, sha256, write_json


def main(*, audit: Path, out: Path) -> None:
    """Exit with status 1, one line for each broken line of the policy; else write `passed`.

    Args:
        audit: audit.json of `audit summarise`.
        out: file to write where the policy holds.
    """
    # An older verdict must not outlive the audits that it was about.
    out.unlink(missing_ok=True)
    try:
        summary = read_json(audit)
    except FileNotFoundError:
        raise UserError(f"{audit}: no such file; make it with `audit summarise`") from None
    try:
        policy = summary["policy"]
        if set(policy["lines"]) != set(KEYS) or not policy["variants"]:
            raise KeyError("lines or variants of the policy")
        broken = broken_lines(summary)
        held, unevaluable = (lines_that(summary, holds) for holds in (True, None))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{audit}: no summary of audits ({error!r}); make it again with `audit summarise`"
        ) from error
    if broken:
        raise SystemExit("\n".join(broken))
    if not held:
        raise SystemExit(f"{audit}: no line of a gated run holds, so nothing was shown")
    write_json(
        out,
        {
            "audit": sha256(audit),
            "policy": summary["policy"],
            "held": held,
            "not_evaluable": unevaluable,
        },
    )
    print(f"{out}: {len(held)} lines hold, {len(unevaluable)} are not evaluable")


def broken_lines(summary: dict[str, Any]) -> list[str]:
    """What stops the gate, one line each: gated variants without an audit, then broken lines.

    Args:
        summary: audit.json of `audit summarise`.
    """
    policy = summary["policy"]
    audited = {run["variant"] for run in summary["runs"]}
    stops = [
        f"{variant}: the policy gates this variant, but it has no audit; add it to the study, or "
        f"take it out of variants in {policy['path']}"
        for variant in policy["variants"]
        if variant not in audited
    ]
    for run in _gated(summary):
        for name, line in policy["lines"].items():
            verdict = run["verdicts"][name]
            # Only what was shown passes; what cannot be told, only where data may lack it.
            excused = verdict["holds"] is None and name in MAY_LACK
            if verdict["holds"] is not True and not excused:
                stops.append(
                    f"{_name(run)}: {name} {_figure(verdict)} breaks {line['condition']} "
                    f"({verdict['reason']}); see {line['key']} in {run['path']}"
                )
    return stops


def lines_that(summary: dict[str, Any], holds: bool | None) -> list[str]:
    """Lines of gated runs with this verdict: dataset, variant, seed and name of the line."""
    return [
        f"{_name(run)}: {name}"
        for run in _gated(summary)
        for name in summary["policy"]["lines"]
        if run["verdicts"][name]["holds"] is holds
    ]


def _gated(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [run for run in summary["runs"] if run["variant"] in summary["policy"]["variants"]]


def _name(run: dict[str, Any]) -> str:
    return f"{run['dataset']}/{run['variant']}/seed-{run['seed']}"


def _figure(verdict: dict[str, Any]) -> str:
    if verdict["value"] is None:
        return "without a figure"
    return f"{verdict['value']:.4g} ({verdict['low']:.4g} to {verdict['high']:.4g})"
