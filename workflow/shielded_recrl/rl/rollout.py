"""Sampling responses from a policy, and scoring them token by token.

Prompts are padded on the left, responses on the right; position ids come from the mask. A token is
drawn by inverting the distribution function at a uniform number of its own, so that a response
depends on its prompt and its numbers alone, not on the batch, the rank or the engine's random state.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from shielded_recrl.explainer.lm import (
    activation,
    can_merge,
    causal_lm,
    dropout_off,
    entered_at,
    merged_for_decoding,
    pad_left,
    positions,
    states_recorded,
    trunk,
)
from shielded_recrl.rl.ppo import entropy, tempered, token_logprobs


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
            self.request[rows.cpu()],
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
    ) -> tuple[Rollout, Scores | None]:
        """Sample one response a prompt.

        Args:
            model: a PEFT model.
            prompts: token ids.
            active: tokens of each prompt that an activated adapter acts on, the last ones.
            uniforms: one number in [0, 1) for each token that may be drawn, float64 [n, t] on the
                CPU: the only source of randomness.
            temperature: of sampling.

        Returns:
            The responses, and their scores where engine and precision are those of training, so
            that nothing has to be computed again.
        """


class TransformersEngine:
    """Decoding by the model that is trained, its adapter merged where that is exact enough."""

    def __init__(self, tokenizer, merge: bool = True, compile: bool = False):
        """
        Args:
            tokenizer: gives the padding and end-of-text ids.
            merge: decode with the adapter merged into fp32 weights.
            compile: compile the decoding step and replay it as a CUDA graph.
        """
        self.tokenizer, self.merge = tokenizer, merge
        self.decoder = Decoder(compile)

    def __call__(self, model, prompts, active, uniforms, temperature):
        """See `Engine`."""
        merge = self.merge and can_merge(model)
        with merged_for_decoding(model) if merge else nullcontext():
            rollout, scores = sample(
                model,
                prompts,
                self.tokenizer,
                uniforms,
                temperature,
                active=active,
                decoder=self.decoder,
            )
        # In 16 bits a cached pass and a whole one differ by percents of a probability.
        exact = not merge and causal_lm(model).dtype == torch.float32
        return rollout, scores if exact else None


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
        self._caches: dict[tuple[int, int], object] = {}

    def cache(self, lm: nn.Module, rows: int, length: int):
        """An empty static cache; compiled code needs the same one at the same address again."""
        from transformers import StaticCache

        if not self.compile:
            return StaticCache(config=lm.config, max_cache_len=length)
        length = -(-length // self.ROUND) * self.ROUND
        if (rows, length) not in self._caches:
            self._caches[rows, length] = StaticCache(config=lm.config, max_cache_len=length)
        cache = self._caches[rows, length]
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
) -> tuple[Rollout, Scores | None]:
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

    Returns:
        The responses, and what the model made of them while it wrote them (None where the decoder
        is compiled: replayed passes overwrite their states).
    """
    device = next(trunk(model).parameters()).device
    ids, mask = (tensor.to(device) for tensor in pad_left(prompts, tokenizer.pad_token_id))
    lm, decoder, uniforms = causal_lm(model), decoder or Decoder(), uniforms.to(device)
    active = list(map(len, prompts)) if active is None else list(active)
    (rows, width), longest = ids.shape, uniforms.shape[1]
    cache = decoder.cache(lm, rows, width + longest)
    mask = torch.cat([mask, mask.new_zeros(rows, longest)], dim=1)
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    tokens, logps, entropies = [], [], []
    step_ids, step_positions = ids, positions(mask[:, :width])
    # A step of decoding is one token, the last: counts beyond it are cut to it.
    recorded = nullcontext([]) if decoder.compile else states_recorded(model)
    # Blocks in training mode with gradient checkpointing would leave the cache unread.
    with dropout_off(model), activation(model, active), recorded as states:
        for step in range(longest):
            logits = decoder(
                lm,
                input_ids=step_ids,
                attention_mask=mask,
                position_ids=step_positions,
                past_key_values=cache,
            )
            logits = nucleus(tempered(logits, temperature), top_p)[:, None]
            drawn = draw(logits[:, 0], uniforms[:, step])
            drawn = torch.where(alive[:, None], drawn, tokenizer.pad_token_id)
            tokens.append(drawn)
            logps.append(token_logprobs(logits, drawn, 1.0))
            entropies.append(entropy(logits, 1.0))
            mask[:, width + step] = alive
            step_ids, step_positions = drawn, step_positions[:, -1:] + 1
            alive = alive & (drawn[:, 0] != tokenizer.eos_token_id)
            if not alive.any():
                break
    ids, mask = torch.cat([ids, *tokens], dim=1), mask[:, : width + len(tokens)]
    response = mask[:, width:].float()
    # Outside of a nucleus padding has the log-probability -inf, which no product makes 0.
    logp = torch.cat(logps, dim=1).masked_fill(response == 0, 0)
    rollout = Rollout(ids, mask, response, ~alive, torch.tensor(active), logp)
    if not states:
        return rollout, None
    hidden = torch.stack([state[:, -1].float() for state in states], dim=1)
    return rollout, Scores(logp, torch.cat(entropies, dim=1) * response, hidden)


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
    begin = nullcontext() if entry is None else entered_at(model, *entry)
    with activation(model, rollout.request + t), states_recorded(model) as states, begin:
        output = causal_lm(model)(
            input_ids=rollout.ids,
            attention_mask=rollout.mask,
            position_ids=positions(rollout.mask),
            use_cache=False,
            logits_to_keep=t + 1,
        )
    return output.logits[:, :-1], states[0][:, -t - 1 : -1]
