"""The mathematics of PPO against numbers worked out by hand and independent oracles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.rl.ppo import (
    entropy,
    explained_variance,
    gae,
    importance_weights,
    k1,
    k3,
    masked_mean,
    next_kl_weight,
    policy_loss,
    token_logprobs,
    token_rewards,
    value_loss,
    whiten,
)

FAR = 20.0  # a bound of the log-ratio that binds in no ordinary case


def batch(seed: int, n: int = 4, t: int = 6, padding: int = 0):
    """Random tensors [n, t + padding] and a right-padded mask; padding holds large garbage."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, t + 1, (n,), generator=generator)
    mask = (torch.arange(t)[None] < lengths[:, None]).float()
    tensors = [torch.randn(n, t, generator=generator) for _ in range(4)]
    garbage = 50 * torch.randn(4, n, padding, generator=generator)
    tensors = [torch.cat([x, g], dim=1) for x, g in zip(tensors, garbage, strict=True)]
    return tensors, torch.cat([mask, torch.zeros(n, padding)], dim=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_token_logprobs_agree_with_torch_distributions(temperature):
    logits = 3 * torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(1))
    oracle = torch.distributions.Categorical(logits=logits / temperature)
    torch.testing.assert_close(token_logprobs(logits, tokens, temperature), oracle.log_prob(tokens))
    torch.testing.assert_close(entropy(logits, temperature), oracle.entropy())


def test_token_logprobs_by_hand():
    """Odds 1 : 3 at temperature 2 become 1 : sqrt 3."""
    logits = torch.tensor([[[0.0, math.log(3)]]])
    p = 3**0.5 / (1 + 3**0.5)
    logp = token_logprobs(logits, torch.tensor([[1]]), 2.0)
    assert logp.item() == pytest.approx(math.log(p), abs=1e-6)
    expected = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert entropy(logits, 2.0).item() == pytest.approx(expected, abs=1e-6)


def test_token_logprobs_are_computed_in_fp32():
    logits = torch.tensor([[[10.0, 9.9]]]).bfloat16()
    # Divided in bf16, 10 / 0.7 would be rounded by up to 2^-8 of itself.
    logp = token_logprobs(logits, torch.tensor([[1]]), 0.7)
    assert logp.dtype == entropy(logits, 0.7).dtype == torch.float32
    gap = (logits[0, 0, 1].double() - logits[0, 0, 0].double()) / 0.7
    assert logp.item() == pytest.approx(float(-torch.log1p(torch.exp(-gap))), abs=1e-6)


def test_entropy_of_impossible_tokens_is_finite():
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    assert entropy(logits, 1.0).item() == pytest.approx(math.log(2), abs=1e-6)


def test_estimates_of_the_kl_by_hand():
    """At pi / pi' = 2: k1 = log 2, k3 = 1/2 - 1 + log 2."""
    logp, other = torch.tensor(-1.0), torch.tensor(-1.0 - math.log(2))
    assert k1(logp, other).item() == pytest.approx(math.log(2), abs=1e-6)
    assert k3(logp, other).item() == pytest.approx(math.log(2) - 0.5, abs=1e-6)
    assert (k1(logp, logp), k3(logp, logp)) == (0, 0)


@given(seed=st.integers(0, 10**6), tokens=st.integers(2, 12), sharp=st.floats(0.1, 4))
@settings(max_examples=50, deadline=None)
def test_the_estimates_are_unbiased(seed, tokens, sharp):
    """Summed over the whole vocabulary by its probabilities, both are the exact KL."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharp * torch.randn(2, tokens, generator=generator)
    logp, other = logits.double().log_softmax(-1)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=logp), torch.distributions.Categorical(logits=other)
    )
    for estimate in (k1, k3):
        mean = (logp.exp() * estimate(logp, other)).sum()
        torch.testing.assert_close(mean, exact, atol=1e-9, rtol=1e-6)
    assert (k3(logp, other) >= 0).all()


def test_the_adaptive_coefficient_by_hand():
    """Off the target by 10%, 64 of 1,000 responses: x (1 + .1 * .064); clipped at 20%."""
    assert next_kl_weight(0.2, 0.11, 0.1, 64, 1000) == pytest.approx(0.2 * (1 + 0.1 * 0.064))
    assert next_kl_weight(0.2, 0.10, 0.1, 64, 1000) == pytest.approx(0.2)
    assert next_kl_weight(0.2, 9.00, 0.1, 64, 1000) == pytest.approx(0.2 * (1 + 0.2 * 0.064))
    assert next_kl_weight(0.2, -1.0, 0.1, 64, 1000) == pytest.approx(0.2 * (1 - 0.2 * 0.064))


def test_importance_weights_by_hand():
    logp = torch.log(torch.tensor([[0.2, 0.9, 0.3]]))
    engine = torch.log(torch.tensor([[0.4, 0.3, 0.3]]))
    torch.testing.assert_close(
        importance_weights(logp, engine, 2.0), torch.tensor([[0.5, 2.0, 1.0]])
    )


def test_masked_mean_by_hand():
    values, mask = torch.tensor([[1.0, 3.0, 50.0], [8.0, 50.0, 50.0]]), torch.zeros(2, 3)
    mask[0, :2] = mask[1, 0] = 1
    assert masked_mean(values, mask).item() == 4.0
    # Two ranks with the same rows: twice the sum, twice the count.
    assert masked_mean(values, mask, lambda part: 2 * part).item() == 4.0


def test_a_mean_over_ranks_weighs_each_token_alike():
    """Ranks of 3 tokens and 1 token: the mean of 4, not the mean of two means."""
    other = torch.tensor([40.0, 1.0])
    got = masked_mean(torch.tensor([[0.0, 0.0, 0.0]]), torch.ones(1, 3), lambda part: part + other)
    assert got.item() == 10.0


def test_token_rewards_by_hand():
    logp = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]])
    reference = torch.tensor([[-1.5, -1.0, 5.0], [-1.0, -3.0, -2.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    got = token_rewards(torch.tensor([0.7, 0.2]), logp, reference, mask, 0.1)
    torch.testing.assert_close(got, torch.tensor([[-0.05, 0.8, 0.0], [0.0, -0.2, 0.1]]))


@given(seed=st.integers(0, 10**6), weight=st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_token_rewards_sum_to_the_score_less_the_weighted_kl(seed, weight):
    (logp, reference, scores, _), mask = batch(seed)
    scores = scores[:, 0]
    got = token_rewards(scores, logp, reference, mask, weight).sum(dim=1)
    torch.testing.assert_close(got, scores - weight * ((logp - reference) * mask).sum(dim=1))


def gae_by_sum(rewards, values, length, discount, lam):
    """A_t = sum_k (discount lam)^k delta_{t+k}, written out."""
    following = [*values[1:length], 0.0]
    delta = [rewards[t] + discount * following[t] - values[t] for t in range(length)]
    return [
        sum((discount * lam) ** (k - t) * delta[k] for k in range(t, length)) for t in range(length)
    ]


@given(seed=st.integers(0, 10**6), discount=st.floats(0.1, 1), lam=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_gae_is_the_explicit_sum(seed, discount, lam):
    (rewards, values, *_), mask = batch(seed, padding=2)
    rewards = rewards * mask
    advantages, returns = gae(rewards, values, mask, discount, lam)
    for row in range(len(rewards)):
        length = int(mask[row].sum())
        expected = gae_by_sum(rewards[row].tolist(), values[row].tolist(), length, discount, lam)
        np.testing.assert_allclose(advantages[row, :length], expected, atol=1e-4)
        np.testing.assert_allclose(
            returns[row, :length], np.array(expected) + values[row, :length].numpy(), atol=1e-4
        )
        assert not advantages[row, length:].any()
        assert not returns[row, length:].any()


@given(seed=st.integers(0, 10**6), discount=st.floats(0.1, 1), lam=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_gae_is_trl_s(seed, discount, lam):
    """The recursion of TRL's PPO (experimental in 1.x, deleted since), on rows without padding."""
    (rewards, values, *_), _ = batch(seed)
    length, last, reversed_ = rewards.shape[1], 0, []
    for t in reversed(range(length)):
        following = values[:, t + 1] if t < length - 1 else 0.0
        last = rewards[:, t] + discount * following - values[:, t] + discount * lam * last
        reversed_.append(last)
    expected = torch.stack(reversed_[::-1], dim=1)
    advantages, returns = gae(rewards, values, torch.ones_like(rewards), discount, lam)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + values)


def test_gae_by_hand():
    """delta = (1 + .5*2 - 1, 3 - 2) = (1, 1); A_1 = 1 + .5 * .8 * 1."""
    advantages, returns = gae(
        torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2), 0.5, 0.8
    )
    torch.testing.assert_close(advantages, torch.tensor([[1.4, 1.0]]))
    torch.testing.assert_close(returns, torch.tensor([[2.4, 3.0]]))


def test_gae_at_the_ends_of_lambda():
    """Lambda 1 is the return to the end less the value; lambda 0 is the one-step error."""
    (rewards, values, *_), _ = batch(3)
    mask = torch.ones_like(rewards)
    to_end = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(gae(rewards, values, mask, 1.0, 1.0)[0], to_end - values)
    following = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], dim=1)
    torch.testing.assert_close(
        gae(rewards, values, mask, 0.9, 0.0)[0], rewards + 0.9 * following - values
    )


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_whiten_agrees_with_numpy_over_real_tokens(seed):
    (values, *_), mask = batch(seed, padding=3)
    real = mask.bool().numpy()
    got = whiten(values, mask).numpy()
    array = values.numpy()[real].astype(np.float64)
    expected = (array - array.mean()) / np.sqrt(array.var() + 1e-8)
    np.testing.assert_allclose(got[real], expected, atol=1e-4)
    assert not got[~real].any()


def test_whiten_by_hand():
    got = whiten(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(got, torch.tensor([[-1.0, 1.0, 0.0]]))


def test_whiten_of_equal_values_is_zero_and_finite():
    assert not whiten(torch.full((2, 3), 4.0), torch.ones(2, 3)).any()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_an_unchanged_policy_has_minus_the_advantages_as_loss(seed):
    (logp, advantages, *_), mask = batch(seed)
    loss, clipped = policy_loss(logp, logp, advantages, mask, 0.2, FAR)
    assert loss.item() == pytest.approx(-(advantages * mask).sum().item(), abs=1e-5)
    assert clipped.item() == 0


def test_the_first_gradient_is_that_of_reinforce():
    """d/dlogp of -rho A at rho = 1 is -A on real tokens, 0 on padding."""
    (logp, advantages, *_), mask = batch(5, padding=1)
    moving = logp.clone().requires_grad_()
    policy_loss(moving, logp, advantages, mask, 0.2, FAR)[0].backward()
    torch.testing.assert_close(moving.grad, -advantages * mask)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.5, 2.0, -2.4, 0.0, 1),  # a good token is not pushed beyond 1 + c
        (1.5, -2.0, 3.0, 3.0, 1),  # a bad token that grew is pushed back in full
        (0.5, -2.0, 1.6, 0.0, 1),  # a bad token is not pushed below 1 - c
        (0.5, 2.0, -1.0, -1.0, 1),
        (1.1, 2.0, -2.2, -2.2, 0),
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, gradient, clipped):
    logp = torch.tensor([[math.log(ratio)]], requires_grad=True)
    got, outside = policy_loss(
        logp, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1), 0.2, FAR
    )
    got.backward()
    assert got.item() == pytest.approx(loss, abs=1e-5)
    assert logp.grad.item() == pytest.approx(gradient, abs=1e-5)
    assert outside.item() == clipped


def test_a_log_ratio_is_bounded_before_it_is_raised():
    """exp(500) is inf; the bound of 3 makes it e^3, and a token beyond it pulls no more."""
    logp = torch.zeros(1, 1, requires_grad=True)
    old, advantage = torch.full((1, 1), -500.0), -torch.ones(1, 1)
    loss, clipped = policy_loss(logp, old, advantage, torch.ones(1, 1), 0.2, 3.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(3), rel=1e-5)
    assert (logp.grad.item(), clipped.item()) == (0.0, 1.0)
    inside, _ = policy_loss(logp, logp.detach() - 2.9, advantage, torch.ones(1, 1), 0.2, 3.0)
    assert inside.item() == pytest.approx(math.exp(2.9), rel=1e-5)


@pytest.mark.parametrize(
    ("value", "old", "returned", "expected", "outside"),
    [
        (1.0, 1.0, 3.0, 2.0, 0),  # not moved: 1/2 (1 - 3)^2
        (1.1, 1.0, 3.0, 0.5 * 1.9**2, 0),  # inside the clip range both terms agree
        (2.0, 1.0, 3.0, 0.5 * 1.8**2, 1),  # moved too far: the clipped term, 1.2, is the worse
        (5.0, 1.0, 1.2, 0.5 * 3.8**2, 1),  # overshot: the unclipped term is the worse
    ],
)
def test_value_loss_by_hand(value, old, returned, expected, outside):
    tensors = [torch.tensor([[x, y]]) for x, y in ((value, 99.0), (old, 0.0), (returned, 0.0))]
    loss, clipped = value_loss(*tensors, torch.tensor([[1.0, 0.0]]), 0.2)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert clipped.item() == outside


def test_explained_variance():
    returns, mask = torch.tensor([[1.0, 3.0, 77.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full((1, 3), 2.0), returns, mask) == pytest.approx(0.0)
    # Errors 0 and 1 have variance 1/4, the returns have 1.
    assert explained_variance(torch.tensor([[1.0, 2.0, 0.0]]), returns, mask) == pytest.approx(0.75)
    # A value that points the wrong way is worse than a constant.
    assert explained_variance(-returns, returns, mask) < 0
    assert explained_variance(returns, torch.ones(1, 3), mask) == 0.0


@given(seed=st.integers(0, 10**6), padding=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_padding_changes_nothing(seed, padding):
    (a, b, c, d), mask = batch(seed, padding=padding)
    short = a.shape[1] - padding

    def everything(a, b, c, d, mask):
        rewards = token_rewards(c[:, 0], a, b, mask, 0.3)
        advantages, returns = gae(rewards, d, mask, 0.97, 0.9)
        return [
            *(x[:, :short] for x in (rewards, advantages, returns, whiten(d, mask))),
            *policy_loss(a, b, whiten(advantages, mask), mask, 0.2, FAR),
            *value_loss(a, b, returns, mask, 0.2),
            masked_mean(a, mask).float(),
            torch.tensor(explained_variance(d, returns, mask)),
        ]

    padded = everything(a, b, c, d, mask)
    plain = everything(*(x[:, :short] for x in (a, b, c, d, mask)))
    for with_padding, without in zip(padded, plain, strict=True):
        torch.testing.assert_close(with_padding, without, atol=1e-5, rtol=1e-4)
