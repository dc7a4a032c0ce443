"""The mathematics of PPO for language models, in pure functions.

Tensors are [n, t] over n responses padded to t tokens; `mask` is 1.0 on real response tokens
(end-of-text included) and 0.0 on padding. Schulman et al. 2016 (GAE), 2017 (PPO); Ziegler et al.
2019 (KL inside the reward).
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens and entropies of the distribution they were sampled from.

    Args:
        logits: [n, t, vocabulary].
        tokens: [n, t].
        temperature: of sampling; the scored distribution is the sampled one.

    Returns:
        Both [n, t], computed in fp32.
    """
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    entropy = -(logp.exp() * logp).sum(dim=-1)
    return logp.gather(-1, tokens[..., None])[..., 0], entropy


def token_rewards(
    scores: Tensor, logp: Tensor, reference: Tensor, mask: Tensor, kl_weight: float
) -> Tensor:
    """Per-token rewards [n, t]: -kl_weight * (logp - reference), plus the score at the last token.

    The difference is the k1 estimate of the KL to the reference (Schulman 2020).

    Args:
        scores: [n].
        logp, reference: log-probabilities under policy and reference, [n, t].
    """
    rewards = -kl_weight * (logp - reference) * mask
    last = mask.sum(dim=1).long() - 1
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


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


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance over response tokens; 0 on padding."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def policy_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip_ratio: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate, summed over response tokens.

    -min(rho A, clip(rho, 1 - c, 1 + c) A) with rho = exp(logp - old_logp), its exponent bounded
    to +-20.

    Returns:
        The loss, and the number of tokens whose ratio lies outside the clip range.
    """
    ratio = (logp - old_logp).clamp(-20, 20).exp()
    bounded = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    loss = -torch.minimum(ratio * advantages, bounded * advantages)
    clipped = ((ratio.detach() - 1).abs() > clip_ratio).float()
    return (loss * mask).sum(), (clipped * mask).sum()


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_value: float
) -> Tensor:
    """1/2 max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2), summed over response tokens."""
    near = old_values + (values - old_values).clamp(-clip_value, clip_value)
    loss = 0.5 * torch.maximum((values - returns).square(), (near - returns).square())
    return (loss * mask).sum()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over response tokens; 0 where the returns do not vary."""
    real = mask.bool()
    spread = returns[real].var(unbiased=False)
    error = (returns - values)[real].var(unbiased=False)
    return float(1 - error / spread) if spread > 0 else 0.0
