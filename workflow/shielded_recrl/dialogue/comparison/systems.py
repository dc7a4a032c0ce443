"""What is compared: one sample or the best of N, of the supervised LM and of the policy.

    supervised     one sample of the supervised LM
    best_of_n      of N samples of it, the one that the critic likes best
    rl             one sample of the policy
    rl_best_of_n   of N samples of it, the one that the critic likes best

So `rl` and `supervised` cost one sample a turn, the two others N: pairs of equal cost are compared,
and `rl` with `best_of_n`, which costs N times as much. All take the same random numbers. The first of
the N samples is the one that stands alone.

In: a policy, prompts, the critic. Out: texts, and how far the policy's are from the supervised LM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from shielded_recrl.dialogue.response.generation import uniform_numbers
from shielded_recrl.rl.ppo import tempered
from shielded_recrl.rl.rollout import Rollout, TransformersEngine, decode, response_logits

# Responses in one pass that measures the KL.
BATCH = 64
# Of the seed of sampling; `judge` has another.
STREAM = 2


class Sampled(NamedTuple):
    """N responses to each of n prompts.

    Attributes:
        texts: [n][N].
        ended: [n], whether the first reached end-of-text.
        tokens: [n], of the first.
        kl: [n], of the first, in nats; zeros for the supervised LM.
    """

    texts: list[list[str]]
    ended: np.ndarray
    tokens: np.ndarray
    kl: np.ndarray


def respond(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    adapter: bool,
    samples: int,
    response_tokens: int,
    temperature: float,
    seed: int,
) -> Sampled:
    """Sample N responses to each prompt.

    Args:
        model: a policy, see `policy`.
        tokenizer: of its base.
        prompts: token ids.
        adapter: whether the policy answers, or the supervised LM.
        samples: N.
        response_tokens: longest response.
        temperature: of sampling.
        seed: equal seeds give equal random numbers.
    """
    count = len(prompts)
    uniforms = [
        uniform_numbers([seed, STREAM, k], count, response_tokens) for k in range(1, samples + 1)
    ]
    asked = [list(prompt) for prompt in prompts] * samples
    with nullcontext() if adapter else model.disable_adapter():
        rollout = TransformersEngine(tokenizer)(
            model, asked, [len(prompt) for prompt in asked], torch.cat(uniforms), temperature
        )
    texts = decode(rollout, tokenizer)
    first = Rollout(*(part[:count] for part in rollout))
    kl = kl_to_supervised(model, first, temperature) if adapter else np.zeros(count)
    return Sampled(
        [texts[row::count] for row in range(count)],
        first.ended.cpu().numpy().astype(float),
        first.response.sum(dim=1).cpu().numpy().astype(float),
        kl,
    )


@torch.no_grad()
def kl_to_supervised(model: nn.Module, rollout: Rollout, temperature: float) -> np.ndarray:
    """KL [n] of the policy to the supervised LM along responses of the policy, in nats.

    The sum over tokens of the KL between the two distributions that each was drawn from: as an
    estimate of the KL between responses it is as right as log pi - log pi_0 and less noisy.
    """
    found = np.zeros(len(rollout.ids))
    for place in rollout.micro_batches(BATCH):
        batch = rollout.at(place)
        policy = tempered(response_logits(model, batch)[0].float(), temperature).log_softmax(-1)
        with model.disable_adapter():
            logits = response_logits(model, batch)[0].float()
        other = tempered(logits, temperature).log_softmax(-1)
        each = (policy.exp() * (policy - other)).sum(dim=-1) * batch.response
        found[place.rows.numpy()] = each.sum(dim=1).double().cpu().numpy()
    return found


def kl_bound(samples: int) -> float:
    """Most nats that the best of N responses is away from what they are samples of.

    log N - (N - 1) / N (Beirami et al. 2024, theorem 3.1).

    >>> round(kl_bound(4), 4)
    0.6363
    """
    return math.log(samples) - (samples - 1) / samples


def best(
    texts: Sequence[Sequence[str]], score: Callable[[list[str], list[int]], np.ndarray]
) -> list[str]:
    """Of each prompt's samples the one with the highest score, of equal ones the first.

    Args:
        texts: [n][N].
        score: texts and the prompt of each -> scores.
    """
    rows = [row for row, samples in enumerate(texts) for _ in samples]
    values = score([text for samples in texts for text in samples], rows)
    grid = np.asarray(values).reshape(len(texts), -1)
    return [samples[place] for samples, place in zip(texts, grid.argmax(axis=1), strict=True)]
