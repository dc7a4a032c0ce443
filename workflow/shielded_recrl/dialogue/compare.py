"""Show the comparison of supervised, best-of-N and RL responses as a table.

In: folders of evaluated runs. Out: a table and the verdicts on the terminal.
"""

from __future__ import annotations

from pathlib import Path

from shielded_recrl.dialogue.comparison.finding import headline, meaning
from shielded_recrl.dialogue.comparison.runs import load_study
from shielded_recrl.dialogue.comparison.text import (
    aligned,
    brief,
    columns,
    cost_rows,
    statement,
    verdicts,
)


def main(*, runs: tuple[Path, ...]) -> None:
    """Show the comparison of the three as a table.

    Args:
        runs: folders of runs of `train` that `evaluate` has compared.
    """
    found = load_study(runs)
    for run in found:
        about = run.evaluation
        print(
            f"{run.folder}: {about['turns']} turns of {about['dialogues']} test dialogues, "
            f"temperature {about['temperature']:g}; 95% intervals, dialogues drawn\n"
        )
        header, *rows = columns(about), *brief(about)
        # Systems and differences would be too wide beside each other.
        for part in (slice(1, 6), slice(6, None)):
            print("\n".join(aligned([(row[0], *row[part]) for row in (header, *rows)])), "\n")
        cost = ("system", "samples a turn", "KL, nats a token", "KL, nats a response")
        print("\n".join(aligned([cost, *cost_rows(about)])), "\n")
        print("\n".join(f"- {line}" for line in verdicts(about)), "\n")
    print("\n".join((headline(found), meaning(found), statement(found[0].evaluation))))
