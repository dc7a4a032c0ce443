"""Who is protected, who is held out, and who trains: one seeded draw shared by all stages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shielded_recrl.errors import UserError
from shielded_recrl.shield.settings import RoleSettings


@dataclass(frozen=True)
class Roles:
    """User ids, each ascending. Held-out users are in none of the others; protected users train."""

    protected: np.ndarray
    heldout: np.ndarray
    train: np.ndarray


def assign_roles(users: np.ndarray, settings: RoleSettings, seed: int) -> Roles:
    """Draw protected and held-out users; everybody who is not held out trains.

    At most a third of the users is held out, and at most all others are protected.

    Args:
        users: ids of the users that can be evaluated (they have test interactions).
        settings: how many of each.
        seed: seed of the draw.

    Raises:
        UserError: fewer than three users.
    """
    if len(users) < 3:
        raise UserError(
            f"ranking.protected_users: only {len(users)} users have test interactions; "
            "at least 3 are needed, so lower datasets.*.min_interactions or add data"
        )
    shuffled = np.random.default_rng(seed).permutation(np.sort(users))
    heldout = min(settings.heldout_users, len(users) // 3)
    protected = min(settings.protected_users, len(users) - heldout)
    return Roles(
        protected=np.sort(shuffled[:protected]),
        heldout=np.sort(shuffled[protected : protected + heldout]),
        train=np.sort(np.concatenate([shuffled[:protected], shuffled[protected + heldout :]])),
    )
