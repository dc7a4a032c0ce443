"""The mathematics of PPO for language models, in pure functions.

Tensors are [n, t] over n responses padded to t tokens; `mask` is 1.0 on real response tokens
(end-of-text included) and 0.0 on padding. Where ranks share a batch, `total` adds a tensor up over
them. Schulman et al. 2016 (GAE), 2017 (PPO); Ziegler et al. 2019 (KL inside the reward).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Total = Callable[[Tensor], Tensor]


def alone(part: Tensor) -> Tensor:
    """The total of a single process."""
    return part


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probabilities [n, t] of the tokens under softmax(logits / temperature), in fp32.

    Args:
        logits: [n, t, vocabulary].
        tokens: [n, t].
        temperature: of sampling; the scored distribution is the sampled one.
    """
    scaled = tempered(logits, temperature)
    return -F.cross_entropy(scaled.flatten(0, 1), tokens.flatten(), reduction="none").view_as(
        tokens
    )


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """Entropies [n, t] of softmax(logits / temperature), in nats, in fp32."""
    return torch.special.entr(tempered(logits, temperature).softmax(dim=-1)).sum(dim=-1)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature in fp32, without a copy where there is nothing to do."""
    logits = logits.float()
    return logits if temperature == 1 else logits / temperature


def k1(logp: Tensor, other: Tensor) -> Tensor:
    """Estimate of KL(pi || other) on tokens drawn from pi: unbiased, of either sign.

    Schulman 2020, "Approximating KL divergence".
    """
    return logp - other


def k3(logp: Tensor, other: Tensor) -> Tensor:
    """The estimate exp(other - logp) - 1 - (other - logp): unbiased and never negative."""
    return torch.expm1(other - logp) - (other - logp)


def token_rewards(
    scores: Tensor, logp: Tensor, reference: Tensor, mask: Tensor, kl_weight: float
) -> Tensor:
    """Per-token rewards [n, t]: -kl_weight * k1(logp, reference), and the score at the last token.

    Args:
        scores: [n].
        logp, reference: log-probabilities under policy and reference, [n, t].
    """
    rewards = -kl_weight * k1(logp, reference) * mask
    last = mask.sum(dim=1).long() - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def next_kl_weight(weight: float, kl: float, target: float, responses: int, horizon: int) -> float:
    """The adaptive coefficient (Ziegler et al. 2019, equation 4).

    weight * (1 + clip(kl / target - 1, -0.2, 0.2) * responses / horizon)
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return weight * (1 + error * responses / horizon)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, discount: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation.

    delta_t = r_t + discount * V_{t+1} - V_t;  A_t = delta_t + discount * lam * A_{t+1};
    the value after the last real token is 0.

    Returns:
        Advantages and returns (advantages + values), [n, t], 0 on padding.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros(len(rewards), dtype=rewards.dtype, device=rewards.device)
    advantage = torch.zeros_like(following)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + discount * following - values[:, t]
        advantage = (delta + discount * lam * advantage) * mask[:, t]
        following = values[:, t] * mask[:, t]
        advantages[:, t] = advantage
    return advantages, (advantages + values) * mask


def masked_mean(values: Tensor, mask: Tensor, total: Total = alone) -> Tensor:
    """Mean over response tokens, []."""
    parts = total(torch.stack([(values * mask).sum(), mask.sum()]).double())
    return parts[0] / parts[1]


def whiten(values: Tensor, mask: Tensor, total: Total = alone) -> Tensor:
    """Zero mean and unit variance over response tokens; 0 on padding."""
    centred = values - masked_mean(values, mask, total).to(values)
    variance = masked_mean(centred.square(), mask, total).to(values)
    return centred * torch.rsqrt(variance + 1e-8) * mask


def importance_weights(logp: Tensor, engine: Tensor, cap: float) -> Tensor:
    """min(pi(y) / pi_engine(y), cap), [n, t], for tokens another engine has sampled.

    Truncated importance sampling (Ionides 2008; Yao et al. 2025 for rollout engines).

    Args:
        logp: log-probabilities under the policy as it is trained.
        engine: log-probabilities under the engine that sampled.
    """
    return (logp - engine).exp().clamp(max=cap)


class Clipped(NamedTuple):
    """A sum over response tokens, and the number of tokens the clipping holds."""

    loss: Tensor
    clipped: Tensor


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_ratio: float,
    log_ratio_bound: float,
) -> Clipped:
    """-min(rho A, clip(rho, 1 - c, 1 + c) A), rho = exp(clip(logp - old_logp, -bound, bound)).

    Summed over response tokens; clipped tokens are those whose ratio lies outside of 1 +- c.
    """
    ratio = (logp - old_logp).clamp(-log_ratio_bound, log_ratio_bound).exp()
    near = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    loss = -torch.minimum(ratio * advantages, near * advantages)
    outside = ((ratio.detach() - 1).abs() > clip_ratio).float()
    return Clipped((loss * mask).sum(), (outside * mask).sum())


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_value: float
) -> Clipped:
    """1/2 max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2), summed over response tokens.

    Clipped tokens are those whose value moved by more than c.
    """
    near = old_values + (values - old_values).clamp(-clip_value, clip_value)
    loss = 0.5 * torch.maximum((values - returns).square(), (near - returns).square())
    outside = ((values.detach() - old_values).abs() > clip_value).float()
    return Clipped((loss * mask).sum(), (outside * mask).sum())


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, total: Total = alone
) -> float:
    """1 - Var(R - V) / Var(R) over response tokens; 0 where the returns do not vary."""

    def variance(x: Tensor) -> float:
        centred = x - masked_mean(x, mask, total)
        return float(masked_mean(centred.square(), mask, total))

    spread = variance(returns.double())
    return 1 - variance((returns - values).double()) / spread if spread > 0 else 0.0
