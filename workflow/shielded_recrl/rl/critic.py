"""Value critics: V_t, the score still to come, at each token of a response.

A value critic is trained on the returns of its own rollouts; it is not the frozen, learned critic
that gives rewards (rewards/critic.py).
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from shielded_recrl.explainer.lm import adapter_parameters, hidden_size, switch_off_dropout
from shielded_recrl.rl.rollout import Rollout, response_states

Kind = Literal["shared", "separate"]
ADAPTER = "critic"


class Critic(Protocol):
    """What PPO asks of a value critic."""

    parameters: dict[str, nn.Parameter]
    cheap: bool  # reads given states, so that a whole batch fits in one pass

    def __call__(
        self, rollout: Rollout, hidden: Tensor, entry: tuple[int, Tensor] | None = None
    ) -> Tensor:
        """V [n, t], with its gradient.

        Args:
            rollout: responses.
            hidden: the policy's states of them, [n, t, d].
            entry: where a pass may begin, see `response_states`.
        """


class SharedCritic:
    """A linear head on the policy's hidden states; its gradient stops there."""

    cheap = True

    def __init__(self, model: nn.Module):
        """
        Args:
            model: PEFT model.
        """
        self.head, self.parameters = value_head(model)

    def __call__(
        self, rollout: Rollout, hidden: Tensor, entry: tuple[int, Tensor] | None = None
    ) -> Tensor:
        """See `Critic`."""
        return predicted(self.head, hidden)


class SeparateCritic:
    """A LoRA adapter and head of its own on the frozen base: no state is shared with the policy."""

    cheap = False

    def __init__(self, model: nn.Module, seed: int):
        """
        Args:
            model: PEFT model; it gets a second adapter, shaped as the active one.
            seed: of its lora_A.
        """
        self.model, self.policy = model, model.active_adapter
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.add_adapter(ADAPTER, model.peft_config[self.policy])
        # A new adapter comes in training mode.
        switch_off_dropout(model)
        self.head, head = value_head(model)
        self.parameters = {**adapter_parameters(model, ADAPTER), **head}
        for weight in self.parameters.values():
            weight.requires_grad_(True)

    def __call__(
        self, rollout: Rollout, hidden: Tensor, entry: tuple[int, Tensor] | None = None
    ) -> Tensor:
        """See `Critic`."""
        # PEFT freezes the adapter it switches off.
        self.model.set_adapter(ADAPTER)
        try:
            own = response_states(self.model, rollout, entry)
        finally:
            self.model.set_adapter(self.policy)
            for weight in self.parameters.values():
                weight.requires_grad_(True)
        return predicted(self.head, own.float())


def make_critic(kind: Kind, model: nn.Module, seed: int) -> Critic:
    """The value critic of a policy."""
    return SharedCritic(model) if kind == "shared" else SeparateCritic(model, seed)


def value_head(model: nn.Module) -> tuple[nn.Linear, dict[str, nn.Parameter]]:
    """A linear head that predicts 0 at first, and its parameters by name."""
    device = next(iter(adapter_parameters(model, model.active_adapter).values())).device
    head = nn.utils.skip_init(nn.Linear, hidden_size(model), 1, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head, {f"value_head.{name}": weight for name, weight in head.named_parameters()}


def predicted(head: nn.Linear, hidden: Tensor) -> Tensor:
    """V [n, t] of states [n, t, d]."""
    return head(hidden / hidden.shape[-1] ** 0.5)[..., 0]
