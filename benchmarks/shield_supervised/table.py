"""Print results.json as the table of the README: means over seeds, losses of every seed."""

import json
from pathlib import Path

import numpy as np
from run import ROWS


def number(values: list[float], digits: int) -> str:
    mean = float(np.mean(values))
    return f"{mean:.{digits}f}" if mean >= 10**-digits or mean == 0 else f"{mean:.0e}"


def drifted(runs: list[dict], who: str) -> str:
    """Largest score change, Kendall tau, share of users with the same top 10."""
    if all(run[who]["bit_identical"] for run in runs):
        return "bit-identical"
    figures = (("max_score_change", 2), ("kendall_tau", 3), ("top10_identical", 2))
    return ", ".join(number([run[who][name] for run in runs], d) for name, d in figures)


def line(row: str, runs: list[dict]) -> str:
    held = [run["rank_share"] for run in runs if run["rank_share"] is not None]
    return " | ".join(
        [
            f"| {row}",
            " ".join(f"{run['loss']:.3f}" for run in runs),
            f"{np.mean(held):.0%}" if held else "",
            number([run["leakage"] for run in runs], 2) if held else "",
            drifted(runs, "protected"),
            f"{drifted(runs, 'heldout')} |",
        ]
    )


if __name__ == "__main__":
    print("| shield | loss, by seed | held | leakage | protected | held-out |")
    print("|---|---|---|---|---|---|")
    results = json.loads(Path(__file__).with_name("results.json").read_text(encoding="utf-8"))
    for row in [*ROWS, "adapter off"]:
        if row in results:
            print(line(row, results[row]))
