"""What stage 1 has to be worth before anything is built on it.

In: how its model and the baselines rank the held-out films of the valid split. Out: nothing, or the
end of the run. That it learned at all, `training.fit` sees to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shielded_recrl.errors import UserError


def require_found(found: Mapping[str, Any], min_recall: float) -> None:
    """Stop a fusion that does not find films, or finds them by popularity alone.

    Args:
        found: `systems` and `ahead_of`, as `evaluation.evaluate` reports them of a group.
        min_recall: recall@10 to be reached.

    Raises:
        UserError: recall@10 is lower, or the interval of its lead over popularity reaches 0.
    """
    recall = found["systems"]["fusion"]["recall@10"]["mean"]
    if recall < min_recall:
        raise UserError(
            f"stage 1 finds {recall:.3f} of the held-out films of the valid split among its first "
            f"10, less than the {min_recall} of dialogue.fusion.min_recall; train on more "
            "dialogues or longer, or lower that bound"
        )
    lead = found["ahead_of"]["popularity"]["recall@10"]
    if lead["low"] <= 0:
        raise UserError(
            "stage 1 is no better than popularity: its recall@10 of the held-out films of the valid "
            f"split is {recall:.3f}, a lead of {lead['mean']:+.3f} [{lead['low']:+.3f}, "
            f"{lead['high']:+.3f}] whose interval should be above 0; train on more dialogues or longer"
        )
