"""Score matching on the protected prompts, for what a partial basis lets through.

With h(D) the final hidden state at a prompt's last token under adapter D, and head(h) the scores
it gives the items, the penalty is

    weight * mean over prompts and items of (head(h(D)) - head(h(0)))^2 / v

where v, the variance of head(h(0)) over items, averaged over prompts, makes it free of units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import (
    dropout_off,
    entered_at,
    first_adapted,
    inputs_recorded,
    last_states,
    prefix_states,
    trunk,
)

Head = Callable[[Tensor], Tensor]


class ScorePenalty:
    """The penalty of a PEFT model, on a minibatch of the protected prompts at a time.

    What enters the first adapted decoder block never changes. Where blocks lie below it, it is
    kept, and passes begin there.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        head: Head,
        weight: float,
        seed: int,
        batch_size: int = 32,
    ):
        """Run the prompts once with the adapter off.

        Args:
            model: PEFT model.
            prompts: protected token ids.
            head: hidden states [n, d] -> scores [n, I].
            weight: weight of the penalty.
            seed: seed of the order of the prompts.
            batch_size: prompts in one loss.

        Raises:
            UserError: the head gives all items of every prompt the same score.
        """
        self.model, self.prompts, self.head = model, list(prompts), head
        self.weight, self.seed, self.batch_size = weight, seed, batch_size
        self.first_block = first_adapted(model)
        recorded = inputs_recorded(model, self.first_block)
        with dropout_off(model), model.disable_adapter(), recorded as batches:
            self.base_states = prefix_states(model, self.prompts, batch_size)
        self.entering: list[Tensor] = []
        if self.first_block > 0:
            states = [row for batch in batches for row in batch]
            pairs = zip(states, self.prompts, strict=True)
            self.entering = [row[: len(prompt)].clone() for row, prompt in pairs]
        self.variance = self._variance()
        if not self.variance > 0:
            raise UserError(
                "penalty: the head gives all items the same score, so there is nothing to match; "
                "set the penalty to 0 or gamma above 0"
            )

    def loss(self, step: int) -> Tensor:
        """The penalty [] of the minibatch of one step, with its gradient.

        Every pass over the prompts has its own order, keyed by (seed, pass): a resumed run sees
        the same minibatches.
        """
        rows = self.rows(step)
        with dropout_off(self.model), self._begun(rows):
            hidden = last_states(self.model, [self.prompts[row] for row in rows])
        base = self.base_states[rows].to(hidden.device)
        change = self.head(hidden) - self.head(base)
        return self.weight * change.square().mean() / self.variance

    def rows(self, step: int) -> list[int]:
        """Which prompts make up the minibatch of a step."""
        batches = -(-len(self.prompts) // self.batch_size)
        one_pass, batch = divmod(step, batches)
        order = np.random.default_rng([self.seed, one_pass]).permutation(len(self.prompts))
        return order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()

    def _begun(self, rows: list[int]) -> AbstractContextManager:
        """Let the forward pass over some prompts begin at the first adapted block."""
        if not self.entering:
            return nullcontext()
        states = pad_sequence([self.entering[row] for row in rows], batch_first=True)
        return entered_at(self.model, self.first_block, states)

    @torch.no_grad()
    def _variance(self) -> float:
        device = next(trunk(self.model).parameters()).device
        parts = [
            self.head(states.to(device)).var(dim=1, correction=0)
            for states in self.base_states.split(self.batch_size)
        ]
        return float(torch.cat(parts).mean())
