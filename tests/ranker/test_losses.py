"""The losses against torch's own, against numbers worked out by hand, and in expectation."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from shielded_recrl.ranker import losses
from shielded_recrl.ranker.losses import bce, full_softmax, gbce, next_item_loss, sampled_softmax

# One dimension, so that scores are products of small numbers; row 0 is padding.
ITEMS = torch.tensor([[9.0], [1.0], [2.0], [-1.0], [0.5]])
STATES = torch.tensor([[2.0], [-1.0]])
TARGETS = torch.tensor([2, 3])


def random_case(seed: int, n: int, count: int, dim: int = 5):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n, dim, generator=generator).requires_grad_()
    items = torch.randn(count + 1, dim, generator=generator).requires_grad_()
    targets = torch.randint(1, count + 1, (n,), generator=generator)
    return states, items, targets


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 40), st.integers(2, 30), st.integers(1, 17))
def test_the_full_softmax_is_cross_entropy_whatever_the_chunk(seed, n, count, rows):
    states, items, targets = random_case(seed, n, count)
    expected = F.cross_entropy(states @ items[1:].T, targets - 1)
    grads = torch.autograd.grad(3 * expected, [states, items])
    with chunked(rows * count):
        loss = full_softmax(states, items, targets)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(torch.autograd.grad(3 * loss, [states, items]), grads, strict=True):
        torch.testing.assert_close(got, want)


def chunked(logits: int):
    """Chunks of so many logits, down to single rows."""
    return mock.patch.multiple(losses, CHUNK={"cpu": logits}, ROWS=1)


def test_the_full_softmax_passes_gradcheck():
    states, items, targets = (x.detach().double() for x in random_case(0, 6, 7))
    inputs = states.requires_grad_(), items.requires_grad_(), targets.long()
    # The loss itself is summed in fp32; the gradients are the exact ones.
    assert torch.autograd.gradcheck(full_softmax, inputs, eps=1e-2, atol=2e-3)


def test_sampled_softmax_by_hand():
    # Scores of state 2: target 4, negatives 2, -2, and 4 (the target, which does not count).
    # Scores of state -1: target 1, negatives -1, 1 (the target), -2. K q = 3 / 4.
    loss = sampled_softmax(STATES, ITEMS, TARGETS, torch.tensor([1, 3, 2]))
    first = math.log(math.exp(4) + (math.exp(2) + math.exp(-2)) / 0.75) - 4
    second = math.log(math.exp(1) + (math.exp(-1) + math.exp(-2)) / 0.75) - 1
    assert loss.item() == pytest.approx((first + second) / 2)
    # Twice the draws, each with half the weight: the same.
    again = sampled_softmax(STATES, ITEMS, TARGETS, torch.tensor([1, 3, 2] * 2))
    assert again.item() == pytest.approx(loss.item())


def test_sampled_softmax_over_the_whole_catalogue_is_the_full_softmax():
    """Each item once, the target among them, which does not count twice."""
    states, items, targets = random_case(3, 8, 6)
    torch.testing.assert_close(
        sampled_softmax(states, items, targets, torch.arange(1, 7)),
        F.cross_entropy(states @ items[1:].T, targets - 1),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 20), st.integers(3, 12), st.integers(1, 9))
def test_gradients_of_the_sampled_softmax_are_those_of_its_formula(seed, n, count, k):
    """The formula through autograd, target hits among the negatives included."""
    states, items, targets = random_case(seed, n, count)
    negatives = torch.randint(1, count + 1, (k,), generator=torch.Generator().manual_seed(seed))
    logits = states @ items[negatives].T - math.log(k / count)
    logits = logits.masked_fill(negatives == targets[:, None], -1e9)
    own = (states * items[targets]).sum(1, keepdim=True)
    expected = F.cross_entropy(torch.cat([own, logits], 1), torch.zeros(n, dtype=torch.long))
    with chunked(3 * k):
        loss = sampled_softmax(states, items, targets, negatives)
    torch.testing.assert_close(loss, expected)
    got, want = (torch.autograd.grad(x, [states, items]) for x in (loss, expected))
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[1], want[1])


def test_sampled_softmax_tends_to_the_full_softmax():
    """With many draws the estimate of the partition function is close, value and gradient."""
    states, items, targets = random_case(1, 16, 40)
    draws = torch.randint(1, 41, (200_000,), generator=torch.Generator().manual_seed(2))
    full, sampled = (
        full_softmax(states, items, targets),
        sampled_softmax(states, items, targets, draws),
    )
    assert sampled.item() == pytest.approx(full.item(), rel=5e-3)
    want, got = (torch.autograd.grad(loss, states)[0] for loss in (full, sampled))
    assert F.cosine_similarity(want.flatten(), got.flatten(), dim=0) > 0.999


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize(("calibration", "beta"), [(0.0, 1.0), (1.0, 2 / 3), (0.75, 0.75)])
def test_gbce_by_hand(calibration, beta):
    # Negatives 1 and 4 of I - 1 = 3 others: rate 2/3; beta = 2/3 (t (1 - 3/2) + 3/2) = 1 - t/3.
    loss = gbce(STATES, ITEMS, TARGETS, torch.tensor([1, 4]), calibration)
    first = beta * log_sigmoid(4) + log_sigmoid(-2) + log_sigmoid(-1)
    second = beta * log_sigmoid(1) + log_sigmoid(1) + log_sigmoid(0.5)
    assert loss.item() == pytest.approx(-(first + second) / 2 / 3, rel=1e-6)


def test_bce_by_hand():
    # The second negative is the target itself, so that only the positive counts there.
    loss = bce(STATES, ITEMS, TARGETS, torch.tensor([1, 3]))
    assert loss.item() == pytest.approx(
        -(log_sigmoid(4) + log_sigmoid(-2) + log_sigmoid(1)) / 4, rel=1e-6
    )


@pytest.mark.parametrize("kind", ["ce", "sampled_softmax", "gbce", "bce"])
def test_every_loss_learns_and_leaves_padding_alone(kind):
    states, items, targets = (x.detach() for x in random_case(5, 30, 20))
    items.requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        optimizer = torch.optim.Adam([items], lr=0.05)
        values = []
        for _ in range(60):
            loss = next_item_loss(kind, states, items, targets, 8, 0.75)
            optimizer.zero_grad()
            loss.backward()
            assert not items.grad[0].any()
            assert torch.isfinite(items.grad).all()
            optimizer.step()
            values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


def test_a_negative_that_is_the_target_gets_no_gradient():
    states, items, targets = random_case(7, 1, 3)
    only = targets.clone()
    for loss in (sampled_softmax(states, items, targets, only), bce(states, items, targets, only)):
        assert torch.isfinite(torch.autograd.grad(loss, items, retain_graph=True)[0]).all()
    # Nothing competes: no loss at all.
    assert sampled_softmax(states, items, targets, only).item() == 0
