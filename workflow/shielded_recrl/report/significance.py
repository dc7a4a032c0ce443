"""The ablation table: each variant against `shielded`, on what both were measured on.

In: explanations.jsonl, users.parquet and rankings.parquet of runs. Out: significance.csv,
significance.tex and significance.md.

Differences are paired, text by text or user by user, within the seeds that both variants ran with,
so that they differ by the variant alone. Intervals draw whole users, with all their texts of all
seeds (paired, clustered bootstrap); p values flip the sign of a user's differences together (Fisher
1935, section 21) and are adjusted over all outcomes and variants of a dataset (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple

import polars as pl
import tyro

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import intact, read_jsonl, write_text
from shielded_recrl.markdown import in_cell, table
from shielded_recrl.report.columns import Row
from shielded_recrl.report.csv_table import to_csv
from shielded_recrl.report.runs import Run, load_runs
from shielded_recrl.report.study import SHIELDED, Cell
from shielded_recrl.report.tables import UNDEFINED, between, escape, number, tabular
from shielded_recrl.statistics import holm, paired_bootstrap, sign_flip_test

# A difference is a claim if as many seeds agree in its sign, and its adjusted p value is below.
CLAIM_SEEDS = 3
LEVEL = 0.05
# Outcome -> what it is measured on, and its name in print.
OUTCOMES = {
    "clicks": ("texts", "Click rate"),
    "clicks_examination": ("texts", "Click rate, examination"),
    "quality": ("texts", "Quality"),
    "ndcg_change": ("users", "Change of NDCG@10"),
    "top10_identical": ("users", "Top 10 identical"),
}
TEXT_KEYS = ("user", "item", "position")
TEXT_OUTCOMES = tuple(name for name, (part, _) in OUTCOMES.items() if part == "texts")
USER_COLUMNS = ("user", "role", "ndcg_before", "ndcg_after")
COLUMNS = (
    *("dataset", "variant", "outcome", "seed", "seeds"),
    *("users", "pairs", "unpaired", "reference", "value"),
    *("difference", "low", "high", "p", "p_holm", "claim"),
)
ALL_SEEDS = "all"


class Outcomes(NamedTuple):
    """What was measured of one run after training, on held-out users.

    Attributes:
        texts: a row a text: user, item, position and the outcomes `TEXT_OUTCOMES`.
        users: a row a user: user, ndcg_change (null where the user has nothing to find) and
            top10_identical, 1 or 0.
    """

    texts: pl.DataFrame
    users: pl.DataFrame


def main(
    *,
    runs: tuple[Path, ...],
    audits: tuple[Path, ...],
    stats: tuple[Path, ...],
    out: Path,
    table_path: Annotated[Path, tyro.conf.arg(name="table")],
    page_path: Annotated[Path, tyro.conf.arg(name="page")],
    resamples: int = 5_000,
    seed: int = 42,
) -> None:
    """Compare each variant with `shielded`.

    Args:
        runs: folders of evaluated runs.
        audits: JSON files of `audit run`, at least one for each run.
        stats: stats.json of every dataset.
        out: CSV file to write.
        table_path: LaTeX file to write.
        page_path: Markdown page to write.
        resamples: of each bootstrap and of each sign-flip test.
        seed: of both.
    """
    loaded = load_runs(runs, audits, stats)
    rows = significance(measured(loaded), resamples, seed)
    write_text(table_path, latex(rows, loaded))
    write_text(page_path, page(rows))
    write_text(out, to_csv(rows, COLUMNS))
    compared = [row for row in rows if row["seed"] == ALL_SEEDS]
    claims = sum(row["claim"] for row in compared)
    print(f"{out}: {len(compared)} comparisons with {SHIELDED}, {claims} of them claims")


def measured(runs: Sequence[Run]) -> dict[str, dict[str, dict[int, Outcomes]]]:
    """Outcomes by dataset, variant and seed, in the order of the runs."""
    found: dict[str, dict[str, dict[int, Outcomes]]] = {}
    for run in runs:
        variants = found.setdefault(run.dataset, {})
        variants.setdefault(run.variant, {})[run.seed] = load_outcomes(run.folder)
    return found


def load_outcomes(folder: Path) -> Outcomes:
    """Outcomes of a run's last step.

    Args:
        folder: of the run, with explanations.jsonl, users.parquet and rankings.parquet.

    Raises:
        UserError: a file is missing, or lacks a column.
    """
    lists = _identical(folder / "rankings.parquet")
    return Outcomes(
        texts=_texts(folder / "explanations.jsonl"),
        users=heldout_users(folder).join(lists, on="user", how="left"),
    )


def heldout_users(folder: Path) -> pl.DataFrame:
    """user and ndcg_change of a run's held-out users, ascending.

    Raises:
        UserError: users.parquet is missing, or lacks a column.
    """
    users = _read_parquet(folder / "users.parquet", USER_COLUMNS)
    change = (pl.col("ndcg_after") - pl.col("ndcg_before")).fill_nan(None)
    return (
        users.filter(pl.col("role") == "heldout")
        .select("user", ndcg_change=change.cast(pl.Float64))
        .sort("user")
    )


def compare(
    reference: Mapping[int, Outcomes], variant: Mapping[int, Outcomes], resamples: int, seed: int
) -> list[Row]:
    """Rows of one variant: for each outcome all shared seeds together, then each alone.

    Args:
        reference: outcomes of the reference by seed.
        variant: outcomes of the variant by seed.
        resamples: of each bootstrap and of each sign-flip test.
        seed: of both.

    Returns:
        Rows with the keys `COLUMNS` but dataset and variant; p_holm and claim still None and False.
        Numbers are None where nothing is shared.
    """
    shared = sorted(reference.keys() & variant.keys())
    rows = []
    for outcome, (part, _) in OUTCOMES.items():
        pairs = {
            one: _paired(getattr(reference[one], part), getattr(variant[one], part), outcome)
            for one in shared
        }
        seeds = sum(not one["pairs"].is_empty() for one in pairs.values())
        every = [(ALL_SEEDS, list(pairs.values()))]
        for label, some in [*every, *((one, [pairs[one]]) for one in shared)]:
            head = {"outcome": outcome, "seed": label, "seeds": seeds}
            rows.append(head | _difference(some, resamples, seed))
    return rows


def significance(
    outcomes: Mapping[str, Mapping[str, Mapping[int, Outcomes]]], resamples: int, seed: int
) -> list[Row]:
    """The whole table, adjusted within each dataset.

    Args:
        outcomes: by dataset, variant and seed. A dataset without the reference has no rows.
        resamples: of each bootstrap and of each sign-flip test.
        seed: of both.
    """
    compared = []
    for dataset, variants in outcomes.items():
        if SHIELDED not in variants:
            continue
        rows = [
            {"dataset": dataset, "variant": name} | row
            for name, by_seed in variants.items()
            if name != SHIELDED
            for row in compare(variants[SHIELDED], by_seed, resamples, seed)
        ]
        _adjust(rows)
        compared += rows
    return compared


def latex(rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """The table as a bare `tabular`: all seeds together, and the difference of each."""
    about = {run.dataset: {"dataset": run.dataset} | run.stats for run in runs}
    owners, lines = [], []
    for pooled, alone in _comparisons(rows):
        dataset, variant, outcome = (pooled[key] for key in ("dataset", "variant", "outcome"))
        owners.append(Cell(dataset, variant, [about[dataset]]))
        ends = (pooled["low"], pooled["high"]) if pooled["low"] is not None else None
        lines.append(
            [
                escape(OUTCOMES[outcome][1]),
                str(pooled["seeds"]),
                f"{pooled['pairs']:,}",
                between(pooled["difference"], ends, 3, True),
                ", ".join(number(row["difference"], 3, True) for row in alone) or UNDEFINED,
                _p_value(pooled["p"]),
                _p_value(pooled["p_holm"]) + (r"$^{*}$" if pooled["claim"] else ""),
            ]
        )
    header = (
        rf"& & & & & \multicolumn{{2}}{{c}}{{Difference from \texttt{{{SHIELDED}}}}} "
        r"& \multicolumn{2}{c}{$p$, sign flips}",
        r"Dataset & Variant & Outcome & Seeds & Pairs & all seeds [95\%] & each seed & plain & Holm",
    )
    return tabular("lllrrrrrr", header, [(6, 7), (8, 9)], owners, lines)


def page(rows: Sequence[Row]) -> str:
    """The Markdown page: all seeds together, and the difference of each."""
    header = ("variant", "outcome", "seeds", "pairs", "unpaired", "difference", "95% interval")
    lines = [
        "# Every variant against shielded\n",
        f"What a variant measures less what `{SHIELDED}` does, over the same users, items and "
        "seeds. Intervals draw whole users, p values flip the signs of whole users, and Holm's "
        "adjustment runs over all comparisons of a dataset. A claim needs "
        f"{CLAIM_SEEDS} seeds of one sign and an adjusted p value below {LEVEL:g}.\n",
    ]
    for dataset, group in groupby(_comparisons(rows), lambda one: one[0]["dataset"]):
        cells = [
            [
                f"`{pooled['variant']}`",
                OUTCOMES[pooled["outcome"]][1],
                *(str(pooled[name]) for name in ("seeds", "pairs", "unpaired")),
                _signed(pooled["difference"]),
                f"{_signed(pooled['low'])} to {_signed(pooled['high'])}" if pooled["pairs"] else "",
                ", ".join(_signed(row["difference"]) for row in alone),
                *(
                    "" if pooled[name] is None else f"{pooled[name]:.2g}"
                    for name in ("p", "p_holm")
                ),
                "yes" if pooled["claim"] else "no",
            ]
            for pooled, alone in group
        ]
        lines += [f"\n## {in_cell(dataset)}\n"]
        lines += table([*header, "each seed", "p", "p, Holm", "claim"], cells)
    if not rows:
        lines.append(f"No dataset has `{SHIELDED}` beside another variant.")
    return "\n".join([*lines, ""])


def _comparisons(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Each comparison over all seeds, with the rows of its seeds alone."""
    for _, group in groupby(rows, lambda row: (row["dataset"], row["variant"], row["outcome"])):
        pooled, *alone = group
        yield pooled, alone


def _texts(path: Path) -> pl.DataFrame:
    try:
        rows = read_jsonl(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it again") from None
    names = (*TEXT_KEYS, *TEXT_OUTCOMES)
    for line, row in enumerate(rows, start=1):
        for name in ("step", *names):
            if not isinstance(row.get(name), (int, float)):
                raise UserError(f"{path}, line {line}: no number {name!r}; evaluate the run again")
    last = max((row["step"] for row in rows), default=None)
    schema = dict.fromkeys(TEXT_KEYS, pl.Int64) | dict.fromkeys(TEXT_OUTCOMES, pl.Float64)
    values = [{name: row[name] for name in names} for row in rows if row["step"] == last]
    return pl.DataFrame(values, schema=schema)


def _identical(path: Path) -> pl.DataFrame:
    """user and top10_identical: whether the ordered list of the last step is that of step 0."""
    rows = _read_parquet(path, ("step", "user", "position", "item")).sort("position")
    lists = rows.group_by("step", "user", maintain_order=True).agg("item")
    before, after = (
        lists.filter(pl.col("step") == step).select("user", "item")
        for step in (0, rows["step"].max())
    )
    same = (pl.col("item") == pl.col("item_after")).cast(pl.Float64)
    return before.join(after, on="user", suffix="_after").select("user", top10_identical=same)


def _read_parquet(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    try:
        return pl.read_parquet(intact(path), columns=list(columns)).cast({"user": pl.Int64})
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"{path}: no readable table of {', '.join(columns)} ({first_line(error)}); evaluate the "
            "run again"
        ) from None


def _paired(reference: pl.DataFrame, variant: pl.DataFrame, outcome: str) -> dict[str, Any]:
    """user, reference and value of each pair, and how many of both found no partner."""
    keys = [name for name in TEXT_KEYS if name in reference.columns]
    one, other = (frame.select(*keys, value=outcome).drop_nulls() for frame in (reference, variant))
    pairs = one.rename({"value": "reference"}).join(other, on=keys, validate="1:1").sort(keys)
    return {"pairs": pairs, "unpaired": len(one) + len(other) - 2 * len(pairs)}


def _difference(some: Sequence[dict[str, Any]], resamples: int, seed: int) -> Row:
    """Figures of pairs taken together."""
    empty = dict.fromkeys(("reference", "value", "difference", "low", "high", "p", "p_holm"))
    counts = {
        "users": 0,
        "pairs": sum(len(one["pairs"]) for one in some),
        "unpaired": sum(one["unpaired"] for one in some),
    }
    row: Row = {**counts, **empty, "claim": False}
    if not counts["pairs"]:
        return row
    pairs = pl.concat([one["pairs"] for one in some])
    users = pairs["user"].to_numpy()
    differences = (pairs["value"] - pairs["reference"]).to_numpy()
    interval = paired_bootstrap(differences, resamples, seed, users)
    return row | {
        "users": pairs["user"].n_unique(),
        "reference": fmean(pairs["reference"]),
        "value": fmean(pairs["value"]),
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "p": sign_flip_test(differences, users, resamples, seed),
    }


def _adjust(rows: Sequence[Row]) -> None:
    """Fill in p_holm and claim of the rows of one dataset."""
    tested = [row for row in rows if row["seed"] == ALL_SEEDS and row["p"] is not None]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
        signs = {
            (alone["difference"] > 0) - (alone["difference"] < 0)
            for alone in rows
            if all(alone[key] == row[key] for key in ("variant", "outcome"))
            and alone["difference"] is not None
        }
        row["claim"] = (
            row["seeds"] >= CLAIM_SEEDS and row["p_holm"] < LEVEL and signs in ({1}, {-1})
        )


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _p_value(p: float | None) -> str:
    r"""A p value in math mode, a small one by a power of ten."""
    return number(p, 4, least=5e-4)
