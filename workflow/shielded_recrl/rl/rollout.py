"""Sampling responses from a policy, and scoring them token by token.

Prompts are padded on the left, responses on the right; position ids come from the mask. A token is
drawn by inverting the distribution function at a uniform number of its own, so that a response
depends on its prompt and its numbers alone, not on the batch, the rank or the engine's random state.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shielded_recrl.explainer.lm import (
    activation,
    can_merge,
    causal_lm,
    decoding,
    entered_at,
    merged_for_decoding,
    pad_left,
    positions,
    states_recorded,
    trunk,
)
from shielded_recrl.rl.ppo import tempered, token_logprobs

# Rows that have ended are dropped when no more than half go on, and no fewer than so many: below,
# a step hardly gets faster, and BLAS may round otherwise.
FEWEST = 8


class Rollout(NamedTuple):
    """Sampled responses.

    Attributes:
        ids: prompts and responses, [n, p + t].
        mask: 1 on real tokens of both, [n, p + t].
        response: 1.0 on real response tokens, end-of-text included, [n, t].
        ended: whether the response reached end-of-text, bool [n].
        request: tokens of each prompt that follow the prefix, where an activated adapter begins to
            act, [n].
        logp: log-probabilities of the tokens under the engine that sampled, [n, t].
    """

    ids: Tensor
    mask: Tensor
    response: Tensor
    ended: Tensor
    request: Tensor
    logp: Tensor

    @property
    def tokens(self) -> Tensor:
        """Response tokens [n, t]."""
        return self.ids[:, -self.response.shape[1] :]

    def place(self, rows: Tensor) -> Place:
        """Where rows lie, less the columns that are padding in all of them."""
        real = self.mask[rows].any(dim=0).nonzero()
        first, last = int(real[0]), int(real[-1]) + 1
        prompt = self.ids.shape[1] - self.response.shape[1]
        return Place(rows, slice(first, last), slice(0, last - prompt))

    def at(self, place: Place) -> Rollout:
        """The part of a rollout that lies at a place."""
        rows, columns, response = place
        return Rollout(
            self.ids[rows, columns],
            self.mask[rows, columns],
            self.response[rows, response],
            self.ended[rows],
            self.request[rows],
            self.logp[rows, response],
        )

    def micro_batches(self, size: int, rows: Tensor | None = None) -> list[Place]:
        """Rows (all by default) in groups of at most `size`, each of similar length.

        Sorting by length leaves little padding in a group.
        """
        rows = torch.arange(len(self.ids)) if rows is None else rows
        order = self.mask.sum(dim=1).cpu()[rows].argsort(stable=True)
        return [self.place(part) for part in rows[order].split(size) if len(part)]


class Place(NamedTuple):
    """Where a micro batch lies in a rollout.

    Attributes:
        rows: indices of its rows.
        columns: its columns of `ids` and `mask`.
        response: its columns of tensors [n, t].
    """

    rows: Tensor
    columns: slice
    response: slice


def assembled(parts: Sequence[Tensor], at: Sequence[tuple[Tensor, slice]], width: int) -> Tensor:
    """One tensor [n, width, ...] of parts [k, t, ...] at their rows and columns, 0 elsewhere."""
    whole = parts[0].new_zeros(sum(len(rows) for rows, _ in at), width, *parts[0].shape[2:])
    for part, (rows, columns) in zip(parts, at, strict=True):
        whole[rows, columns] = part
    return whole


class Scores(NamedTuple):
    """What a policy makes of a rollout's tokens.

    Attributes:
        logp: log-probabilities [n, t].
        entropy: entropies of the distributions they were drawn from, [n, t].
        hidden: final hidden states they were drawn at, [n, t, d].
    """

    logp: Tensor
    entropy: Tensor
    hidden: Tensor


class Engine(Protocol):
    """Where rollouts come from."""

    def __call__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        active: Sequence[int],
        uniforms: Tensor,
        temperature: float,
    ) -> Rollout:
        """Sample one response a prompt, in the order of the prompts.

        Args:
            model: a PEFT model.
            prompts: token ids.
            active: tokens of each prompt that an activated adapter acts on, the last ones.
            uniforms: one number in [0, 1) for each token that may be drawn, float64 [n, t] on the
                CPU: the only source of randomness.
            temperature: of sampling.
        """


class TransformersEngine:
    """Decoding by the model that is trained, its adapter merged where that is exact enough."""

    def __init__(self, tokenizer, merge: bool = True, compile: bool = False, batch_size: int = 128):
        """
        Args:
            tokenizer: gives the padding and end-of-text ids.
            merge: decode with the adapter merged into fp32 weights.
            compile: compile the decoding step and replay it as a CUDA graph.
            batch_size: responses that are decoded together, at the most; those of prompts of
                similar length are.
        """
        self.tokenizer, self.merge, self.batch_size = tokenizer, merge, batch_size
        self.decoder = Decoder(compile)

    def __call__(self, model, prompts, active, uniforms, temperature):
        """See `Engine`."""
        order = torch.tensor([len(prompt) for prompt in prompts]).argsort(stable=True)
        merge = self.merge and can_merge(model)
        with merged_for_decoding(model) if merge else nullcontext():
            parts = [
                sample(
                    model,
                    [prompts[row] for row in rows],
                    self.tokenizer,
                    uniforms[rows],
                    temperature,
                    active=[active[row] for row in rows],
                    decoder=self.decoder,
                )
                for rows in order.split(self.batch_size)
            ]
        return joined(parts, order, self.tokenizer.pad_token_id)


def joined(parts: Sequence[Rollout], order: Tensor, pad: int) -> Rollout:
    """One rollout of several, padded to common lengths.

    Args:
        parts: rollouts, one after the other.
        order: where each of their rows belongs, [n].
        pad: padding id.
    """
    prompts = [part.ids.shape[1] - part.response.shape[1] for part in parts]
    longest = max(part.response.shape[1] for part in parts)

    def padded(part: Rollout, width: int) -> Rollout:
        right = longest - part.response.shape[1]
        both = (max(prompts) - width, right)
        return part._replace(
            ids=F.pad(part.ids, both, value=pad),
            mask=F.pad(part.mask, both),
            response=F.pad(part.response, (0, right)),
            logp=F.pad(part.logp, (0, right)),
        )

    whole = [padded(part, width) for part, width in zip(parts, prompts, strict=True)]
    back = order.argsort()
    return Rollout(*(torch.cat(column)[back] for column in zip(*whole, strict=True)))


class Decoder:
    """Forward passes over a static cache of keys and values, eager or compiled."""

    # Compiled shapes are rounded up to this many positions, so that few are compiled.
    ROUND = 64

    def __init__(self, compile: bool = False):
        """
        Args:
            compile: compile the passes over one token with torch.compile; on a GPU they are
                replayed as CUDA graphs.
        """
        self.compile = compile
        self._compiled: dict[int, nn.Module] = {}
        self._kept: tuple[tuple[int, int], object] | None = None

    def length(self, needed: int) -> int:
        """Positions of cache and mask for as many tokens."""
        return -(-needed // self.ROUND) * self.ROUND if self.compile else needed

    def cache(self, lm: nn.Module, rows: int, length: int):
        """An empty static cache; compiled code needs the same one at the same address again."""
        from transformers import StaticCache

        if not self.compile:
            return StaticCache(config=lm.config, max_cache_len=length)
        if self._kept is None or self._kept[0] != (rows, length):
            self._kept = (rows, length), StaticCache(config=lm.config, max_cache_len=length)
        cache = self._kept[1]
        cache.reset()
        return cache

    def __call__(self, lm: nn.Module, **inputs) -> Tensor:
        """Logits [n, v] of the last position."""
        forward = lm
        if self.compile and inputs["input_ids"].shape[1] == 1:
            if id(lm) not in self._compiled:
                self._compiled[id(lm)] = torch.compile(lm, mode="reduce-overhead")
            forward = self._compiled[id(lm)]
        return forward(use_cache=True, logits_to_keep=1, **inputs).logits[:, -1]


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer,
    uniforms: Tensor,
    temperature: float,
    top_p: float = 1.0,
    active: Sequence[int] | None = None,
    decoder: Decoder | None = None,
) -> Rollout:
    """Sample one response a prompt; stops early when all have ended.

    Args:
        model: a causal LM, with or without adapter.
        prompts: token ids.
        tokenizer: gives the padding and end-of-text ids.
        uniforms: numbers in [0, 1), float64 [n, longest response].
        temperature: of sampling.
        top_p: nucleus threshold; 1 samples from the whole distribution.
        active: tokens of each prompt that an activated adapter acts on; all of them by default.
        decoder: see `Decoder`.
    """
    device = next(trunk(model).parameters()).device
    ids, mask = (tensor.to(device) for tensor in pad_left(prompts, tokenizer.pad_token_id))
    lm, decoder, uniforms = causal_lm(model), decoder or Decoder(), uniforms.to(device)
    active = list(map(len, prompts)) if active is None else list(active)
    (n, width), longest = ids.shape, uniforms.shape[1]
    length = decoder.length(width + longest)
    cache = decoder.cache(lm, n, length)
    tokens = ids.new_full((n, longest), tokenizer.pad_token_id)
    logp = torch.zeros(n, longest, device=device)
    response = torch.zeros(n, longest, device=device)
    ended = torch.zeros(n, dtype=torch.bool, device=device)
    # What follows is of the rows at hand, which are fewer and fewer.
    rows = torch.arange(n, device=device)
    seen = torch.cat([mask, mask.new_zeros(n, length - width)], dim=1)
    step_ids, step_positions = ids, positions(mask)
    # A step of decoding is one token, the last: counts beyond it are cut to it.
    with decoding(model), ExitStack() as acting:
        acting.enter_context(activation(model, active))
        for step in range(longest):
            logits = decoder(
                lm,
                input_ids=step_ids,
                attention_mask=seen,
                position_ids=step_positions,
                past_key_values=cache,
            )
            logits = nucleus(tempered(logits, temperature), top_p)
            drawn = draw(logits, uniforms[rows, step])
            alive = ~ended[rows]
            logp[rows, step] = token_logprobs(logits[:, None], drawn, 1.0)[:, 0]
            drawn = torch.where(alive[:, None], drawn, tokenizer.pad_token_id)
            tokens[rows, step] = drawn[:, 0]
            response[rows, step] = alive.float()
            seen[:, width + step] = alive
            step_ids, step_positions = drawn, step_positions[:, -1:] + 1
            alive = alive & (drawn[:, 0] != tokenizer.eos_token_id)
            ended[rows] = ~alive
            left = int(alive.sum())
            if left == 0:
                break
            if not decoder.compile and FEWEST <= left <= len(rows) // 2:
                cache.reorder_cache(alive.nonzero()[:, 0])
                rows, seen = rows[alive], seen[alive]
                step_ids, step_positions = step_ids[alive], step_positions[alive]
                acting.close()
                acting.enter_context(activation(model, [active[row] for row in rows.tolist()]))
    drawn = slice(0, step + 1)
    response = response[:, drawn]
    return Rollout(
        ids=torch.cat([ids, tokens[:, drawn]], dim=1),
        mask=torch.cat([mask, response.to(mask.dtype)], dim=1),
        response=response,
        ended=ended,
        request=torch.tensor(active),
        logp=logp[:, drawn] * response,
    )


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [n, 1]: the first whose cumulative probability exceeds the uniform number.

    Args:
        logits: [n, v].
        uniforms: [n] in [0, 1), float64.
    """
    cumulative = logits.softmax(-1).double().cumsum(-1)
    level = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True).clamp(max=logits.shape[1] - 1)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits [n, v] with -inf outside the smallest set that holds `top_p` of the probability.

    Of equally likely tokens the first ones complete the set.

    Args:
        logits: fp32 [n, v].
        top_p: share of the probability, more than 0; 1 keeps all tokens.
    """
    if top_p >= 1:
        return logits
    ordered = descending(logits)
    probabilities = ordered.softmax(-1)
    size = (probabilities.cumsum(-1) - probabilities < top_p).sum(-1, keepdim=True)
    least = ordered.gather(-1, (size - 1).clamp(min=0))
    outside = logits < least
    surplus = (~outside).sum(-1, keepdim=True) - size
    if surplus.any():
        ties = logits == least
        outside |= ties & (ties.cumsum(-1) > ties.sum(-1, keepdim=True) - surplus)
    return logits.masked_fill(outside, float("-inf"))


def descending(values: Tensor) -> Tensor:
    """Each row of fp32 values [n, v], largest first."""
    if values.is_cuda:
        return values.sort(descending=True).values
    # NumPy sorts with vector instructions; torch's sort on the CPU takes nine times as long.
    return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)


def decode(rollout: Rollout, tokenizer) -> list[str]:
    """The responses as text, special tokens dropped."""
    rows = [
        row[real.bool()].tolist()
        for row, real in zip(rollout.tokens, rollout.response, strict=True)
    ]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def response_logits(
    model: nn.Module, rollout: Rollout, entry: tuple[int, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Logits that predict each response token, and the hidden states they were read from.

    Args:
        model: a causal LM, with or without adapter.
        rollout: responses.
        entry: a decoder block to begin at, and what enters it, [n, p + t, d].

    Returns:
        logits [n, t, vocabulary] and hidden states [n, t, d].
    """
    t = rollout.response.shape[1]
    with states_recorded(model) as states:
        output = _whole_pass(model, causal_lm(model), rollout, entry, logits_to_keep=t + 1)
    return output.logits[:, :-1], states[0][:, -t - 1 : -1]


def response_states(
    model: nn.Module, rollout: Rollout, entry: tuple[int, Tensor] | None = None
) -> Tensor:
    """The hidden states of `response_logits` alone, [n, t, d]."""
    output = _whole_pass(model, trunk(model), rollout, entry)
    return output.last_hidden_state[:, -rollout.response.shape[1] - 1 : -1]


def _whole_pass(model: nn.Module, part: nn.Module, rollout: Rollout, entry, **options):
    begin = nullcontext() if entry is None else entered_at(model, *entry)
    with activation(model, rollout.request + rollout.response.shape[1]), begin:
        return part(
            input_ids=rollout.ids,
            attention_mask=rollout.mask,
            position_ids=positions(rollout.mask),
            use_cache=False,
            **options,
        )
