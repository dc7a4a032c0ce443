"""The weighted sum, and what it refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.errors import UserError
from shielded_recrl.rl.rewards.base import Composite


class Given:
    """A reward that returns what it was given."""

    def __init__(self, **components):
        self.components = components

    def __call__(self, prompts, responses, context):
        return self.components


def call(composite, n=2):
    return composite([""] * n, ["text"] * n, [None] * n)


def test_total_by_hand():
    """2 * [1, 0] - 0.5 * [0.5, 1]; `seen` has no weight, is given and adds nothing."""
    rewards = [
        Given(a=torch.tensor([1.0, 0.0]), seen=torch.tensor([9.0, 9.0])),
        Given(penalty=torch.tensor([0.5, 1.0])),
    ]
    parts = call(Composite(rewards, {"a": 2.0, "penalty": -0.5}))
    assert list(parts) == ["a", "seen", "penalty", "total"]
    assert parts["total"].tolist() == [1.75, -0.5]
    assert parts["total"].dtype == torch.float32


@given(
    st.lists(
        st.tuples(st.floats(-3, 3), st.lists(st.floats(0, 1), min_size=3, max_size=3)), max_size=4
    )
)
def test_total_is_the_weighted_sum(columns):
    rewards = [Given(**{f"c{k}": torch.tensor(row)}) for k, (_, row) in enumerate(columns)]
    weights = {f"c{k}": weight for k, (weight, _) in enumerate(columns)}
    expected = [sum(weight * row[i] for weight, row in columns) for i in range(3)]
    total = call(Composite(rewards, weights), n=3)["total"]
    assert total.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_weight_without_a_component_is_named():
    with pytest.raises(UserError, match=r"weight `b` names no component; there are: a$"):
        call(Composite([Given(a=torch.zeros(2))], {"a": 1.0, "b": 1.0}))


@pytest.mark.parametrize("name", ["a", "total"])
def test_two_components_of_one_name_are_refused(name):
    rewards = [Given(a=torch.zeros(2)), Given(**{name: torch.zeros(2)})]
    with pytest.raises(UserError, match=f"`{name}` is given twice"):
        call(Composite(rewards, {}))


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (torch.zeros(3), r"torch.float32 \[3\]"),
        (torch.zeros(2, 1), r"\[2, 1\]"),
        (torch.zeros(2, dtype=torch.float64), "torch.float64"),
        (torch.zeros(2, device="meta"), "on meta"),
        ([0.0, 0.0], "got list"),
    ],
)
def test_a_component_of_the_wrong_kind_is_refused(values, got):
    with pytest.raises(UserError, match=rf"`a`: expected torch.float32 \[2\] on the CPU.*{got}"):
        call(Composite([Given(a=values)], {"a": 1.0}))


def test_no_gradient_leaves_a_reward():
    parts = call(Composite([Given(a=torch.ones(2, requires_grad=True))], {"a": 1.0}))
    assert not any(values.requires_grad for values in parts.values())


def test_prompts_responses_and_context_come_together():
    composite = Composite([Given(a=torch.zeros(1))], {})
    with pytest.raises(ValueError, match="1 prompts, 2 responses and 1 contexts"):
        composite([""], ["", ""], [None])
