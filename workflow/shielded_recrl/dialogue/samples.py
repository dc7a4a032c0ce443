"""Show dialogues with the responses of supervised, best-of-N and RL side by side.

In: the folder of an evaluated run. Out: the first dialogues by number, on the terminal.
"""

from __future__ import annotations

from pathlib import Path

from shielded_recrl.dialogue.comparison.side_by_side import as_text, first_dialogues, load_responses
from shielded_recrl.dialogue.comparison.text import best_of, load_run
from shielded_recrl.errors import UserError


def main(*, run: Path, dialogues: int = 5) -> None:
    """Show dialogues with the three responses side by side.

    Args:
        run: folder of a run of `train` that `evaluate` has compared.
        dialogues: how many, the first ones.
    """
    if dialogues < 1:
        raise UserError(f"--dialogues: {dialogues}; expected 1 at least")
    shown = first_dialogues(load_responses(run), dialogues)
    print("\n".join(as_text(shown, best_of(load_run(run).evaluation))))
