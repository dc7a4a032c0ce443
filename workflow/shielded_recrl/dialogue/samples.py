"""Show dialogues with the responses of supervised, best-of-N and RL side by side.

In: the folder of an evaluated run. Out: dialogues drawn by a seed, on the terminal.
"""

from __future__ import annotations

from pathlib import Path

from shielded_recrl.dialogue.comparison.runs import load_responses, load_run
from shielded_recrl.dialogue.comparison.side_by_side import answered, as_text, drawn_dialogues
from shielded_recrl.dialogue.comparison.text import best_of
from shielded_recrl.errors import UserError


def main(*, run: Path, dialogues: int = 5, seed: int = 42) -> None:
    """Show dialogues with the three responses side by side.

    Args:
        run: folder of a run of `train` that `evaluate` has compared.
        dialogues: how many.
        seed: of drawing them; the report draws the same by the same seed.
    """
    if dialogues < 1:
        raise UserError(f"--dialogues: {dialogues}; expected 1 at least")
    found = load_run(run)
    shown = drawn_dialogues(answered({found.seed: load_responses(run)}), dialogues, seed)
    print("\n".join(as_text(shown, best_of(found.evaluation))))
