"""The reward protocol, and the weighted sum of rewards.

A reward is any callable that gives named components, one number a response. It scores the
response and nothing else: the prompt and the context are evidence to check the response against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from shielded_recrl.errors import UserError

TOTAL = "total"


class Reward(Protocol):
    """What the trainer asks of a reward."""

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], context: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Components by name, each a float32 CPU tensor [n].

        Args:
            prompts: the n prompts as text.
            responses: the n texts to be scored.
            context: what the task knows of each prompt, for example an `explainer.prompts.Request`.
        """
        ...


class Composite:
    """The weighted sum of the components of some rewards.

    total = sum_k weights[k] * component_k. A penalty is a component with a negative weight. A
    component without a weight is computed and logged, and adds nothing.
    """

    def __init__(self, rewards: Sequence[Reward], weights: Mapping[str, float]):
        """
        Args:
            rewards: whose components are weighted; no two give the same name.
            weights: component name to weight.
        """
        self.rewards = list(rewards)
        self.weights = dict(weights)

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], context: Sequence[Any]
    ) -> dict[str, Tensor]:
        """All components, and their weighted sum under `total`.

        Raises:
            ValueError: prompts, responses and context differ in number.
            UserError: two rewards give one name, a weight names a component nobody gives, or a
                component is no float32 CPU tensor [n].
        """
        if not len(prompts) == len(responses) == len(context):
            raise ValueError(
                f"{len(prompts)} prompts, {len(responses)} responses and {len(context)} contexts"
            )
        parts: dict[str, Tensor] = {}
        for reward in self.rewards:
            for name, values in reward(prompts, responses, context).items():
                if name in parts or name == TOTAL:
                    raise UserError(f"reward component `{name}` is given twice; rename one of them")
                parts[name] = checked(name, values, len(responses))
        for name in self.weights:
            if name not in parts:
                raise UserError(
                    f"reward weight `{name}` names no component; there are: {', '.join(parts)}"
                )
        total = torch.zeros(len(responses))
        for name, weight in self.weights.items():
            total += weight * parts[name]
        return {**parts, TOTAL: total}


def checked(name: str, values: Any, count: int) -> Tensor:
    """A component as it came, if it is a float32 CPU tensor [count].

    Raises:
        UserError: it is not.
    """
    if isinstance(values, Tensor):
        right = values.shape == (count,) and values.dtype == torch.float32
        if right and values.device.type == "cpu":
            return values.detach()
        got = f"{values.dtype} {list(values.shape)} on {values.device}"
    else:
        got = type(values).__name__
    raise UserError(
        f"reward component `{name}`: expected torch.float32 [{count}] on the CPU, got {got}; "
        "return one number a response"
    )
