"""Roles: one seeded draw, held-out users nowhere else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.errors import UserError
from shielded_recrl.shield.roles import assign_roles
from shielded_recrl.shield.settings import RoleSettings


@given(
    users=st.sets(st.integers(1, 10**6), min_size=3, max_size=60),
    protected=st.integers(1, 40),
    heldout=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None)
def test_heldout_users_are_in_no_other_role(users, protected, heldout, seed):
    ids = np.array(sorted(users))
    asked = RoleSettings(protected_users=protected, heldout_users=heldout)
    roles = assign_roles(ids, asked, seed)
    parts = {name: set(getattr(roles, name).tolist()) for name in ("protected", "heldout", "train")}
    assert not parts["heldout"] & (parts["protected"] | parts["train"])
    assert parts["protected"] <= parts["train"]
    assert parts["heldout"] | parts["train"] == users
    assert len(parts["heldout"]) == min(heldout, len(users) // 3)
    assert len(parts["protected"]) == min(protected, len(users) - len(parts["heldout"]))
    for name, members in parts.items():
        assert getattr(roles, name).tolist() == sorted(members)


def test_the_seed_decides_and_the_order_of_users_does_not():
    asked, ids = RoleSettings(protected_users=10, heldout_users=10), np.arange(1, 61)
    first, second, other = (
        assign_roles(users, asked, seed) for users, seed in ((ids, 1), (ids[::-1], 1), (ids, 2))
    )
    np.testing.assert_array_equal(first.protected, second.protected)
    np.testing.assert_array_equal(first.heldout, second.heldout)
    assert set(first.protected) != set(other.protected)
    assert set(first.heldout) != set(other.heldout)


def test_asking_for_fewer_heldout_users_does_not_move_the_protected_ones():
    many, few = (
        assign_roles(np.arange(1, 61), RoleSettings(protected_users=10, heldout_users=n), 1)
        for n in (20, 5)
    )
    np.testing.assert_array_equal(many.protected, few.protected)
    assert set(few.heldout) < set(many.heldout)


def test_too_few_users_is_one_line():
    with pytest.raises(UserError, match="only 2 users") as caught:
        assign_roles(np.array([1, 2]), RoleSettings(), 0)
    assert "\n" not in str(caught.value)
