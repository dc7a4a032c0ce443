"""Sampling responses from a policy, and scoring them token by token.

Prompts are padded on the left, responses on the right; position ids come from the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shielded_recrl.explainer.lm import activation, causal_lm, pad_left, positions, trunk


class Rollout(NamedTuple):
    """Sampled responses.

    Attributes:
        ids: prompts and responses, [n, p + t].
        mask: 1 on real tokens of both, [n, p + t].
        response: 1.0 on real response tokens, end-of-text included, [n, t].
        ended: whether the response reached end-of-text, bool [n].
        request: tokens of each prompt that follow the prefix, where an activated adapter begins to
            act, [n].
    """

    ids: Tensor
    mask: Tensor
    response: Tensor
    ended: Tensor
    request: Tensor

    @property
    def tokens(self) -> Tensor:
        """Response tokens [n, t]."""
        return self.ids[:, -self.response.shape[1] :]

    def rows(self, index: slice) -> Rollout:
        """Some of the rows."""
        return Rollout(*(tensor[index] for tensor in self))


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
    top_p: float = 1.0,
    request: Sequence[int] | None = None,
) -> Rollout:
    """Sample one response a prompt; stops early when all have ended.

    Args:
        model: a causal LM, with or without adapter.
        prompts: token ids.
        tokenizer: gives the padding and end-of-text ids.
        max_new_tokens: longest response.
        temperature: of sampling.
        generator: on the CPU; the only source of randomness.
        top_p: nucleus threshold; 1 samples from the whole distribution.
        request: tokens of each prompt that follow the prefix; all of them by default.
    """
    device = next(trunk(model).parameters()).device
    ids, mask = (tensor.to(device) for tensor in pad_left(prompts, tokenizer.pad_token_id))
    lm = causal_lm(model)
    active = list(map(len, prompts)) if request is None else list(request)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    tokens, response, cache = [], [], None
    step_ids, step_positions = ids, positions(mask)
    # A step of decoding is one token, the last: counts beyond it are cut to it.
    with activation(model, active):
        for _ in range(max_new_tokens):
            output = lm(
                input_ids=step_ids,
                attention_mask=mask,
                position_ids=step_positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            logits = nucleus(output.logits[:, -1].float().cpu() / temperature, top_p)
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator).to(device)
            drawn = torch.where(alive[:, None], drawn, tokenizer.pad_token_id)
            tokens.append(drawn)
            response.append(alive)
            mask = torch.cat([mask, alive[:, None].to(mask.dtype)], dim=1)
            step_ids, step_positions = drawn, step_positions[:, -1:] + 1
            alive = alive & (drawn[:, 0] != tokenizer.eos_token_id)
            if not alive.any():
                break
    return Rollout(
        ids=torch.cat([ids, *tokens], dim=1),
        mask=mask,
        response=torch.stack(response, dim=1).float(),
        ended=~alive,
        request=torch.tensor(active),
    )


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits [n, v] with -inf outside the smallest set that holds `top_p` of the probability."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= top_p
    return logits.masked_fill(outside.scatter(-1, order, outside), float("-inf"))


def decode(rollout: Rollout, tokenizer) -> list[str]:
    """The responses as text, special tokens dropped."""
    rows = [
        row[real.bool()].tolist()
        for row, real in zip(rollout.tokens, rollout.response, strict=True)
    ]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def response_logits(model: nn.Module, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Logits that predict each response token, and the hidden states they were read from.

    Returns:
        logits [n, t, vocabulary] and hidden states [n, t, d].
    """
    t = rollout.response.shape[1]
    with activation(model, rollout.request + t):
        output = trunk(model)(
            input_ids=rollout.ids,
            attention_mask=rollout.mask,
            position_ids=positions(rollout.mask),
            use_cache=False,
        )
    hidden = output.last_hidden_state[:, -t - 1 : -1]
    return causal_lm(model).get_output_embeddings()(hidden), hidden
