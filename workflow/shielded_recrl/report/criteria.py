"""The success criteria of the study, each with a verdict.

In: runs, their rows of the table, users.parquet of each, the study's plan, and the policy's verdicts.
Out: success_criteria.csv.

A criterion is a statement that has to be shown, in every seed and on the worse end of the interval:
what the data leave open counts as failed, and `how` says so. With fewer than `CLAIM_SEEDS` seeds a
criterion can fail but not be met, but for those that ask only whether something is there. A failed
one is a row of the table and never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from shielded_recrl.audit.gate import broken_lines, lines_that
from shielded_recrl.errors import UserError
from shielded_recrl.files import write_text
from shielded_recrl.markdown import in_cell, table
from shielded_recrl.report.columns import Row, row
from shielded_recrl.report.csv_table import to_csv
from shielded_recrl.report.runs import Run, load_runs, read_summary
from shielded_recrl.report.settings import ReportSettings
from shielded_recrl.report.significance import CLAIM_SEEDS, heldout_users
from shielded_recrl.report.study import SHIELDED, UNSHIELDED
from shielded_recrl.statistics import missed, tost

COLUMNS = (
    *("criterion", "dataset", "variant", "verdict", "value", "low", "high"),
    *("bound", "seeds", "how"),
)
MET, FAILED, NOT_EVALUABLE = "met", "failed", "not evaluable"
# The variants that a finished study of a dataset compares with the shielded one.
ABLATIONS = (UNSHIELDED, "kl0", "lora4", "long_expl")
ALL_VARIANTS = "all"
# What an audit has to hold, see `audit run`.
AUDITS = ("toxicity", "popularity", "fairness", "privacy", "injection", "grounding")
# Of the evaluation, see `rl evaluate`.
SIMULATORS = ("claims", "examination")
# One-sided level of both tests of equivalence.
LEVEL = 0.05
MOST_KL = 0.5
LEAST_UNIQUE = 0.5


class Planned(NamedTuple):
    """A run that the study asks for, and its PPO steps."""

    dataset: str
    variant: str
    seed: int
    steps: int


class _Known(NamedTuple):
    """A run with its row of the table, and what NDCG@10 changed by for each held-out user."""

    run: Run
    row: Row
    changes: np.ndarray


class Reading(NamedTuple):
    """What one seed says of a criterion.

    Attributes:
        value: the figure.
        low: lower end of its 95% interval; None where it has none.
        high: upper end.
        shown: whether this seed shows the criterion; None where it cannot tell.
        remark: what else a reader has to know.
    """

    value: float
    low: float | None
    high: float | None
    shown: bool | None
    remark: str = ""


def main(
    *,
    runs: tuple[Path, ...],
    audits: tuple[Path, ...],
    stats: tuple[Path, ...],
    out: Path,
    page_path: Annotated[Path, tyro.conf.arg(name="page")],
    settings: Annotated[ReportSettings, tyro.conf.arg(name="")],
    planned: tuple[str, ...] = (),
    audit: Path | None = None,
) -> None:
    """Judge the success criteria of the study.

    Args:
        runs: folders of evaluated runs.
        audits: JSON files of `audit run`, at least one for each run.
        stats: stats.json of every dataset.
        out: CSV file to write.
        page_path: Markdown page to write.
        settings: margins of NDCG@10 and of claim precision.
        planned: the runs of the study as dataset/variant/seed/steps.
        audit: audit.json of `audit summarise`.
    """
    plan = [parse_planned(text) for text in planned]
    loaded = load_runs(runs, audits, stats)
    rows = [row(run, settings) for run in loaded]
    verdicts = criteria(
        loaded,
        rows,
        settings,
        None if audit is None else read_summary(audit),
        changes=[ndcg_changes(run.folder) for run in loaded],
        planned=plan,
    )
    write_text(page_path, page(verdicts))
    write_text(out, to_csv(verdicts, COLUMNS))
    print(overview(verdicts))
    print(f"{out}: {counts(verdicts)}")


def parse_planned(text: str) -> Planned:
    """A planned run from its flag.

    >>> parse_planned("books/shielded/42/16")
    Planned(dataset='books', variant='shielded', seed=42, steps=16)

    Raises:
        UserError: the text has another form.
    """
    parts = text.split("/")
    if len(parts) != 4 or not (parts[2].isdecimal() and parts[3].isdecimal()):
        raise UserError(f"--planned {text!r}: expected dataset/variant/seed/steps")
    return Planned(parts[0], parts[1], int(parts[2]), int(parts[3]))


def criteria(
    runs: Sequence[Run],
    rows: Sequence[Row],
    settings: ReportSettings,
    audit: Mapping[str, Any] | None,
    *,
    changes: Sequence[np.ndarray],
    planned: Sequence[Planned] = (),
) -> list[Row]:
    """Every criterion on every dataset, with the keys `COLUMNS`.

    Args:
        runs: finished runs.
        rows: their rows of the table, in the same order.
        settings: margins of NDCG@10 and of claim precision.
        audit: audit.json of `audit summarise`; None: the policy is not evaluable.
        changes: of each run, what NDCG@10 changed by for each held-out user, [U].
        planned: what the study asks for; none: its completion is not evaluable.
    """
    known = [_Known(*parts) for parts in zip(runs, rows, changes, strict=True)]
    datasets = dict.fromkeys([*(run.dataset for run in runs), *(plan.dataset for plan in planned)])
    judged = []
    for dataset in datasets:
        shielded, unshielded = (
            {
                one.run.seed: one
                for one in known
                if (one.run.dataset, one.run.variant) == (dataset, variant)
            }
            for variant in (SHIELDED, UNSHIELDED)
        )
        judged += [
            *(_ctr_rises(dataset, shielded, simulator) for simulator in SIMULATORS),
            _ndcg_flat(dataset, shielded, settings.ndcg_margin),
            _unshielded_drifts(dataset, shielded, unshielded),
            _completed(dataset, runs, planned),
            _audited(dataset, runs),
            _policy_holds(dataset, audit),
            _kl_small(dataset, shielded),
            _texts_distinct(dataset, shielded),
            _claims_hold(dataset, shielded, settings.claim_margin),
        ]
    return judged


def ndcg_changes(folder: Path) -> np.ndarray:
    """What NDCG@10 changed by, [U], for each held-out user of a run who has something to find."""
    return heldout_users(folder)["ndcg_change"].drop_nulls().to_numpy()


def counts(rows: Sequence[Row]) -> str:
    """How many criteria have which verdict, in words."""
    found = [one["verdict"] for one in rows]
    return ", ".join(f"{found.count(name)} {name}" for name in (MET, FAILED, NOT_EVALUABLE))


def page(rows: Sequence[Row]) -> str:
    """The Markdown page: what failed first, then every criterion."""
    failed = [one for one in rows if one["verdict"] == FAILED]
    header = ("dataset", "criterion", "variant", "verdict", "value", "interval", "bound", "seeds")
    cells = [
        [
            *(in_cell(one[name]) for name in ("dataset", "criterion", "variant", "verdict")),
            _short(one["value"]),
            "" if one["low"] is None else f"{_short(one['low'])} to {_short(one['high'])}",
            in_cell(one["bound"]),
            str(one["seeds"]),
            in_cell(one["how"]),
        ]
        for one in rows
    ]
    return "\n".join(
        [
            "# Success criteria\n",
            f"**{counts(rows)}.** A criterion has to be shown by every seed, of which a claim needs "
            f"{CLAIM_SEEDS}, and on the worse end of its interval: what the data leave open counts "
            "as failed. `ablations_completed` and `audits_exist` ask only what is there and need no "
            f"{CLAIM_SEEDS} seeds. For `policy_holds`, lines that the data cannot have are listed as "
            "not evaluable and do not fail it.\n",
            *(["## Failed\n"] if failed else []),
            *(
                f"- `{one['criterion']}` on {in_cell(one['dataset'])}: {in_cell(one['how'])}\n"
                for one in failed
            ),
            "## All of them\n",
            *table([*header, "how"], cells),
            "",
        ]
    )


def overview(rows: Sequence[Row]) -> str:
    """What was not met, one line each, for the terminal."""
    return "\n".join(
        f"{one['verdict'].upper()}: {one['criterion']} on {one['dataset']}: {one['how']}"
        for one in rows
        if one["verdict"] != MET
    )


def _ctr_rises(dataset: str, own: Mapping[int, _Known], simulator: str) -> Row:
    def read(known: _Known) -> Reading | None:
        clicks = known.run.evaluation.get("simulators", {}).get(simulator, {})
        value, low, high = (clicks.get(f"relative{end}") for end in ("", "_low", "_high"))
        return None if None in (value, low, high) else Reading(value, low, high, low > 1)

    return _judge(
        *(f"ctr_rises_{simulator}", dataset, SHIELDED, "> 1"),
        {key: read(known) for key, known in own.items()},
        f"click rate after over before training, simulator {simulator}",
    )


def _ndcg_flat(dataset: str, own: Mapping[int, _Known], margin: float) -> Row:
    def read(known: _Known) -> Reading | None:
        users = len(known.changes)
        if users < 2:
            return None
        p = tost(known.changes, margin)
        value = float(known.changes.mean())
        ends = known.row["ndcg_change_low"], known.row["ndcg_change_high"]
        remark = f"{np.count_nonzero(known.changes)} of {users} users changed, p {p:.2g}"
        if p >= LEVEL and p == missed(abs(value), users, margin) < 1:
            return Reading(value, *ends, None, f"{remark}: too few users to bound it")
        return Reading(value, *ends, p < LEVEL, remark)

    return _judge(
        *("ndcg_flat", dataset, SHIELDED, f"within {margin:g} of 0"),
        {key: read(known) for key, known in own.items()},
        f"change of served NDCG@10 of held-out users; two one-sided tests at {LEVEL:g}",
    )


def _unshielded_drifts(
    dataset: str, shielded: Mapping[int, _Known], unshielded: Mapping[int, _Known]
) -> Row:
    name = ("unshielded_drifts", dataset, UNSHIELDED)
    what = (
        f"share of held-out users with an identical top 10, below the lowest end under {SHIELDED}"
        "; Clopper-Pearson intervals"
    )
    if not shielded:
        return _row(*name, NOT_EVALUABLE, "", how=f"{what}; the study has no run of {SHIELDED}")
    bound = min(1 - known.row["drift_heldout_top10_changed_high"] for known in shielded.values())

    def read(known: _Known) -> Reading:
        value, low, high = (
            1 - known.row[f"drift_heldout_top10_changed{end}"] for end in ("", "_high", "_low")
        )
        remark = "the ranking does not read the LM: gamma is 0" if known.row["gamma"] == 0 else ""
        return Reading(value, low, high, high < bound, remark)

    readings = {key: read(known) for key, known in unshielded.items()}
    return _judge(*name, f"< {bound:.3f}", readings, what)


def _completed(dataset: str, runs: Sequence[Run], planned: Sequence[Planned]) -> Row:
    name = ("ablations_completed", dataset, ALL_VARIANTS)
    wanted = [plan for plan in planned if plan.dataset == dataset]
    if not wanted:
        return _row(*name, NOT_EVALUABLE, "1", how="the plan of the study was not given")
    # `train.jsonl` has a row a step: load_runs refuses a run where it has not.
    done = {(run.dataset, run.variant, run.seed): len(run.steps) for run in runs}
    missing = [plan for plan in wanted if done.get(plan[:3], 0) < plan.steps]
    unplanned = [one for one in ABLATIONS if one not in {plan.variant for plan in wanted}]
    how = f"{len(wanted) - len(missing)} of {len(wanted)} planned runs with all their PPO steps"
    if missing:
        how += "; missing: " + ", ".join(f"{m.variant}/seed-{m.seed}" for m in missing)
    if unplanned:
        how += f"; ablations that are not planned: {', '.join(unplanned)}"
    return _row(
        *name,
        FAILED if missing else NOT_EVALUABLE if unplanned else MET,
        "1",
        value=1 - len(missing) / len(wanted),
        seeds=len({plan.seed for plan in wanted}),
        how=how,
    )


def _audited(dataset: str, runs: Sequence[Run]) -> Row:
    name = ("audits_exist", dataset, ALL_VARIANTS)
    own = [run for run in runs if run.dataset == dataset]
    if not own:
        return _row(*name, NOT_EVALUABLE, "1", how="no run of this dataset")
    lacking = {
        f"{run.variant}/seed-{run.seed}": absent
        for run in own
        if (absent := [part for part in AUDITS if part not in run.audit])
    }
    how = f"{len(own) - len(lacking)} of {len(own)} runs with all of: {', '.join(AUDITS)}"
    if lacking:
        how += "; " + "; ".join(f"{run} lacks {', '.join(a)}" for run, a in lacking.items())
    return _row(
        *name,
        FAILED if lacking else MET,
        "1",
        value=1 - len(lacking) / len(own),
        seeds=len({run.seed for run in own}),
        how=how,
    )


def _policy_holds(dataset: str, audit: Mapping[str, Any] | None) -> Row:
    name = ("policy_holds", dataset)
    if audit is None:
        return _row(*name, SHIELDED, NOT_EVALUABLE, "1", how="no summary of audits was given")
    own_runs = [run for run in audit["runs"] if run["dataset"] == dataset]
    # A gated variant that the study runs on other datasets only is no matter of this one.
    elsewhere = {run["variant"] for run in audit["runs"]} - {run["variant"] for run in own_runs}
    gated = [name for name in audit["policy"]["variants"] if name not in elsewhere]
    own = {"policy": {**audit["policy"], "variants": gated}, "runs": own_runs}
    broken, held, open_ = broken_lines(own), lines_that(own, True), lines_that(own, None)
    how = f"{len(held)} lines of the policy hold on gated runs"
    how += f"; not evaluable: {', '.join(open_)}" if open_ else ""
    how += f"; {'; '.join(broken)}" if broken else ""
    judged = len(held) + len(broken)
    seeds = min((sum(run["variant"] == one for run in own_runs) for one in gated), default=0)
    verdict = FAILED if broken else MET if held else NOT_EVALUABLE
    if verdict == MET and seeds < CLAIM_SEEDS:
        verdict = NOT_EVALUABLE
        how += f"; {_too_few(seeds)}"
    return _row(
        *(*name, ", ".join(gated), verdict, "1"),
        value=len(held) / judged if judged else None,
        seeds=seeds,
        how=how,
    )


def _kl_small(dataset: str, own: Mapping[int, _Known]) -> Row:
    return _judge(
        *("kl_small", dataset, SHIELDED, f"< {MOST_KL:g}"),
        _plain(own, "kl", lambda kl: kl < MOST_KL),
        "nats per token from the base, mean of the last quarter of training",
    )


def _texts_distinct(dataset: str, own: Mapping[int, _Known]) -> Row:
    return _judge(
        *("texts_distinct", dataset, SHIELDED, f">= {LEAST_UNIQUE:g}"),
        _plain(own, "unique_after", lambda share: share >= LEAST_UNIQUE),
        "distinct texts over texts after training",
    )


def _claims_hold(dataset: str, own: Mapping[int, _Known], margin: float) -> Row:
    def read(known: _Known) -> Reading | None:
        value, low, high = (
            known.row[f"claim_precision_change{end}"] for end in ("", "_low", "_high")
        )
        return None if None in (value, low, high) else Reading(value, low, high, low > -margin)

    return _judge(
        *("claims_hold", dataset, SHIELDED, f"> {-margin:g}"),
        {key: read(known) for key, known in own.items()},
        "claim precision after less before training",
    )


def _plain(
    own: Mapping[int, _Known], column: str, shows: Callable[[float], bool]
) -> dict[int, Reading]:
    """Readings of a figure without an interval."""
    values = {key: known.row[column] for key, known in own.items()}
    return {key: Reading(value, None, None, shows(value)) for key, value in values.items()}


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _judge(
    criterion: str,
    dataset: str,
    variant: str,
    bound: str,
    readings: Mapping[int, Reading | None],
    what: str,
) -> Row:
    """The verdict of all seeds: value is their mean, low and high the hull of their intervals.

    Of a figure without intervals, `how` tells the range over seeds: that is no interval.
    """
    name = (criterion, dataset, variant)
    if not readings:
        return _row(*name, NOT_EVALUABLE, bound, how=f"{what}; the study has no run of {variant}")
    known = {key: reading for key, reading in readings.items() if reading is not None}
    undefined = [str(key) for key in readings if key not in known]
    against = [key for key, one in known.items() if one.shown is not None and not one.shown]
    open_ = any(one.shown is None for one in known.values())
    parts = [what]
    if undefined:
        parts.append(f"undefined in seed {', '.join(undefined)}")
    if against:
        parts.append(f"not shown by seed {', '.join(map(str, against))}")
    parts += [f"seed {key}: {one.remark}" for key, one in known.items() if one.remark]
    values = [one.value for one in known.values()]
    lows = [one.low for one in known.values() if one.low is not None]
    highs = [one.high for one in known.values() if one.high is not None]
    if len(values) > 1 and not lows:
        parts.append(f"{_short(min(values))} to {_short(max(values))} over seeds")
    verdict = FAILED if against else NOT_EVALUABLE if undefined or open_ else MET
    if verdict == MET and len(readings) < CLAIM_SEEDS:
        verdict = NOT_EVALUABLE
        parts.append(_too_few(len(readings)))
    return _row(
        *(*name, verdict, bound),
        value=fmean(values) if values else None,
        low=min(lows, default=None),
        high=max(highs, default=None),
        seeds=len(readings),
        how="; ".join(parts),
    )


def _too_few(seeds: int) -> str:
    return f"shown by {seeds} of at least {CLAIM_SEEDS} seeds"


def _row(
    criterion: str,
    dataset: str,
    variant: str,
    verdict: str,
    bound: str,
    *,
    value: float | None = None,
    low: float | None = None,
    high: float | None = None,
    seeds: int = 0,
    how: str,
) -> Row:
    values = (criterion, dataset, variant, verdict, value, low, high, bound, seeds, how)
    return dict(zip(COLUMNS, values, strict=True))
