"""The served ranking: one prefill of prefix(u) gives h(u; D), and

    score(u, i; D) = < s(u) + gamma * W h(u; D), e(i) >

with the frozen SASRec user state s [d_r], item embedding e [d_r] and read-out W [d_r, d].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import (
    activation,
    is_activated,
    pad_left,
    positions,
    prefix_states,
    trunk,
)
from shielded_recrl.explainer.prompts import PromptBuilder, Request, load_items
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.files import intact
from shielded_recrl.ranker.data import Splits, load_splits
from shielded_recrl.shield.roles import Roles, assign_roles
from shielded_recrl.shield.settings import RoleSettings


@dataclass(frozen=True)
class Serving:
    """A dataset as the served system sees it: histories, roles and prompts."""

    splits: Splits
    roles: Roles
    prompts: PromptBuilder

    @classmethod
    def load(
        cls,
        data: Path,
        base: Path,
        templates: Path,
        prompt: PromptSettings,
        roles: RoleSettings,
        seed: int,
    ) -> Serving:
        """Read a prepared dataset and the tokenizer of a base LM.

        Args:
            data: folder of the dataset.
            base: folder of the base LM.
            templates: folder of the prompt templates.
            prompt: prompt lengths.
            roles: how many users are protected and held out.
            seed: seed of the draw of roles.
        """
        from shielded_recrl.explainer.base import load_tokenizer

        splits = load_splits(data)
        return cls(
            splits=splits,
            roles=assign_roles(splits.evaluable("test"), roles, seed),
            prompts=PromptBuilder(
                load_tokenizer(base), templates, load_items(data / "items.parquet"), prompt
            ),
        )

    def prefix(self, user: int, split: str = "test") -> tuple[int, ...]:
        """Token ids of the prefix the ranking reads before it predicts `split`."""
        return self.prompts.prefix(self.splits.history(split, user).tolist())[0]

    def request(self, user: int, item: int, split: str = "test") -> Request:
        """The request to explain `item`, with the history before `split`."""
        return self.prompts.request(user, item, self.splits.history(split, user).tolist())


@dataclass(frozen=True)
class RankerStates:
    """What the ranker stage exports; row 0 is padding."""

    items: np.ndarray  # e [I + 1, d_r]
    valid_users: np.ndarray  # s after the train history [U + 1, d_r]
    test_users: np.ndarray  # s after train and validation history [U + 1, d_r]


def load_states(path: Path) -> RankerStates:
    """Read states.safetensors.

    Raises:
        UserError: the file is missing or damaged, or its tensors do not fit together.
    """
    tensors = _numbers(path, dict.fromkeys(RankerStates.__annotations__, 2), "evaluate the ranker")
    states = RankerStates(**tensors)
    if not states.items.shape[1] == states.valid_users.shape[1] == states.test_users.shape[1]:
        raise UserError(f"{path}: states of different widths; evaluate the ranker again")
    if len(states.valid_users) != len(states.test_users):
        raise UserError(f"{path}: states of different users; evaluate the ranker again")
    return states


@dataclass(frozen=True)
class ReadOut:
    """W [d_r, d] and gamma."""

    weight: np.ndarray
    gamma: float


@dataclass(frozen=True)
class RankingHead:
    """The LM's part of the served scores, gamma <W h, e(i)>, for gradients.

    Attributes:
        items: e [I, d_r].
        weight: W [d_r, d].
        gamma: weight of the read-out.
    """

    items: Tensor
    weight: Tensor
    gamma: float

    @classmethod
    def of(cls, states: RankerStates, readout: ReadOut) -> RankingHead:
        """The head of a served ranking; the padding row of the items is left out."""
        return cls(
            torch.from_numpy(states.items[1:]), torch.from_numpy(readout.weight), readout.gamma
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        """Scores [n, I] of hidden states [n, d]."""
        weight, items = (part.to(hidden.device) for part in (self.weight, self.items))
        return self.gamma * (hidden.float() @ weight.T @ items.T)


def load_readout(path: Path) -> ReadOut:
    """Read readout.safetensors.

    Raises:
        UserError: the file is missing or damaged.
    """
    tensors = _numbers(path, {"weight": 2, "gamma": 0}, "fit the read-out")
    return ReadOut(weight=tensors["weight"], gamma=float(tensors["gamma"]))


def _numbers(path: Path, dimensions: Mapping[str, int], make: str) -> dict[str, np.ndarray]:
    """The named tensors of a file, of so many dimensions each, all of finite numbers."""
    tensors = read_tensors(path)
    for name, count in dimensions.items():
        if name not in tensors:
            raise UserError(f"{path}: no tensor {name!r}; {make} again")
        tensor = tensors[name]
        if tensor.dtype.kind != "f" or tensor.ndim != count:
            raise UserError(
                f"{path}: {name} is {tensor.dtype} of {tensor.ndim} dimensions, expected floats of "
                f"{count}; {make} again"
            )
        # A sum holds no copy, and keeps an infinity or NaN.
        if not np.isfinite(tensor.sum(dtype=np.float64)):
            raise UserError(f"{path}: {name} holds what is no number; {make} again")
    return {name: tensors[name] for name in dimensions}


def served_scores(
    users: np.ndarray, hidden: np.ndarray, items: np.ndarray, readout: ReadOut
) -> np.ndarray:
    """Scores [U, I + 1], float64.

    Args:
        users: SASRec states s [U, d_r].
        hidden: LM states h [U, d].
        items: embeddings e [I + 1, d_r].
        readout: W and gamma.
    """
    lm = hidden.astype(np.float64) @ readout.weight.T.astype(np.float64)
    return (users.astype(np.float64) + readout.gamma * lm) @ items.T.astype(np.float64)


def served_states(
    model: nn.Module, prompts: Sequence[Sequence[int]], batch_size: int = 64
) -> Tensor:
    """h at the end of each prompt, as it is served with the adapter as it is: on or off.

    An activated adapter is served by one prefill of prompt and request, in which it wakes with the
    first invocation token: so here, the request cut to its invocation tokens. Of any other model
    the prompt is all there is.

    Returns:
        float32 states [n, d] on the CPU, in the order of `prompts`.
    """
    if not is_activated(model):
        return prefix_states(model, prompts, batch_size)
    invocation = list(model.active_peft_config.alora_invocation_tokens)
    device = next(trunk(model).parameters()).device
    states = []
    for start in range(0, len(prompts), batch_size):
        rows = [[*prompt, *invocation] for prompt in prompts[start : start + batch_size]]
        ids, mask = (tensor.to(device) for tensor in pad_left(rows, 0))
        with torch.no_grad(), activation(model, [len(invocation)] * len(rows)):
            hidden = trunk(model)(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions(mask),
                use_cache=False,
            ).last_hidden_state
        states.append(hidden[:, -len(invocation) - 1].float().cpu())
    return torch.cat(states)


def top_items(
    scores: np.ndarray, splits: Splits, split: str, users: Sequence[int], k: int
) -> np.ndarray:
    """The k best unseen items of each user, [U, k], best first."""
    from shielded_recrl.ranker.metrics import top_k

    return top_k(scores, splits.seen_mask(split, np.asarray(users)), k)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file.

    Raises:
        UserError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(intact(path))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); delete it and run again"
        ) from error
