"""Write the table of a learning study from its aggregate_results.csv.

python benchmarks/ppo_learning/table.py results/aggregate_results.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

HEAD = (
    "| variant | seed | relative CTR | share of the attainable lift | KL a token | distinct texts "
    "| claim precision, before | after | change | words | held-out top 10 the same |\n"
    "|---|--:|---|---|--:|--:|--:|--:|---|--:|--:|"
)


def table(path: Path) -> str:
    """Markdown: a row for each run, with 95% intervals, and what bounds them all."""
    rows = pl.read_csv(path)
    lines = [HEAD]
    for row in rows.iter_rows(named=True):
        lines.append(
            f"| `{row['variant']}` | {row['seed']} | {interval(row, 'ctr_relative', '.3f')} "
            f"| {interval(row, 'lift_share', '.0%')} | {row['kl']:.2f} "
            f"| {row['unique_after']:.0%} | {row['claim_precision_before']:.1%} "
            f"| {row['claim_precision_after']:.1%} "
            f"| {interval(row, 'claim_precision_change', '+.3f')} | {row['words_after']:.0f} "
            f"| {row['drift_heldout_top10_identical']:.1%} |"
        )
    scale = {
        name: f"{rows[name].min():.3f} to {rows[name].max():.3f}"
        for name in ("ctr_attainable", "ctr_from_empty", "published_share")
    }
    lines += ["", "Over these runs: " + "; ".join(f"`{k}` {v}" for k, v in scale.items()) + "."]
    return "\n".join(lines)


def interval(row: dict, name: str, form: str) -> str:
    """An estimate with its 95% interval."""
    return f"{row[name]:{form}} [{row[f'{name}_low']:{form}}, {row[f'{name}_high']:{form}}]"


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
