"""Responses of an LM, sampled or greedy.

In: an LM with or without adapter, prompts, uniform numbers. Out: texts in slot form. A response
depends on its prompt and its numbers alone: two LMs asked with the same numbers differ by what they
are, see `rl.rollout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import can_merge, causal_lm, merged_for_decoding
from shielded_recrl.rl.rollout import decode, sample
from shielded_recrl.rl.settings import SamplingSettings

# Responses decoded together; the cache of keys and values grows with it.
BATCH = 128
# The smallest nucleus is the likeliest token.
GREEDY = SamplingSettings(temperature=1.0, top_p=1e-9)


def require_room(model: nn.Module, tokens: int) -> None:
    """Refuse prompts and responses that the LM has no positions for.

    Raises:
        UserError: they are longer than its context.
    """
    most = getattr(causal_lm(model).config, "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise UserError(
            f"dialogue.response: prompt_tokens and response_tokens make {tokens}, but the base LM "
            f"reads {most} at the most; lower them"
        )


def uniform_numbers(seed: int | Sequence[int], responses: int, tokens: int) -> Tensor:
    """Numbers in [0, 1), float64 [responses, tokens], for `generate`.

    Args:
        seed: equal seeds give equal numbers; the first rows are those of fewer responses.
        responses: to be sampled.
        tokens: of the longest of them.
    """
    return torch.from_numpy(np.random.default_rng(seed).random((responses, tokens)))


def generate(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    sampling: SamplingSettings = GREEDY,
) -> list[str]:
    """One response a prompt, in the order of the prompts.

    Args:
        model: a causal LM, with or without adapter.
        tokenizer: of the LM.
        prompts: token ids; none gives no response.
        uniforms: one number for each token that may be drawn, float64 [n, longest response].
        sampling: temperature and nucleus; greedy by default, whatever the numbers.
    """
    texts: dict[int, str] = {}
    order = torch.tensor([len(prompt) for prompt in prompts]).argsort(stable=True)
    bar = tqdm(total=len(prompts), desc="generate", unit="response", mininterval=5)
    merged = merged_for_decoding(model) if can_merge(model) else nullcontext()
    with bar, merged:
        for rows in order.split(BATCH) if len(prompts) else ():
            rollout = sample(
                model,
                [prompts[row] for row in rows],
                tokenizer,
                uniforms[rows],
                sampling.temperature,
                sampling.top_p,
            )
            texts |= zip(rows.tolist(), decode(rollout, tokenizer), strict=True)
            bar.update(len(rows))
    return [texts[row] for row in range(len(prompts))]
