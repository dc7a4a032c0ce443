"""Write the table of a frontier study from its aggregate_results.csv.

python benchmarks/shield_frontier/table.py results/aggregate_results.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

UNSHIELDED = ("no_proj", "no_proj_all")
HEAD = (
    "| variant | top 10 the same, held out | protected | NDCG@10 change, held out | reward gained, by seed "
    "| beside unshielded | merged fp32 | bf16 | nf4 |\n|---|--:|--:|--:|---|--:|--:|--:|--:|"
)


def table(path: Path) -> str:
    """Markdown: a row for each variant, means over seeds."""
    rows = pl.read_csv(path)
    variants = rows["variant"].unique(maintain_order=True).to_list()
    gains = {v: rows.filter(pl.col("variant") == v)["heldout_reward_gain"] for v in variants}
    unshielded = max((gains[v] for v in UNSHIELDED if v in gains), key=pl.Series.mean)
    # A share of a gain that some seeds do not show says nothing.
    gained = unshielded.min() > 0
    lines = [HEAD]
    for variant in variants:
        own = rows.filter(pl.col("variant") == variant)
        merged = [
            share(own[f"merged_{precision}_top10_identical"])
            for precision in ("fp32", "bf16", "nf4")
        ]
        lines.append(
            f"| `{variant}` | {share(own['drift_heldout_top10_identical'])} "
            f"| {share(own['drift_protected_top10_identical'])} "
            f"| {own['ndcg_change'].mean():+.4f} "
            f"| {' '.join(f'{gain:.3f}' for gain in gains[variant])} "
            f"| {f'{gains[variant].mean() / unshielded.mean():.0%}' if gained else '-'} "
            f"| {' | '.join(merged)} |"
        )
    return "\n".join(lines)


def share(column: pl.Series) -> str:
    """Mean of shares in per cent; a dash where nothing was measured."""
    return f"{column.mean():.1%}" if column.dtype.is_numeric() and column.null_count() == 0 else "-"


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
