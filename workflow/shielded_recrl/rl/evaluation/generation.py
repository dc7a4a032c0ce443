"""The texts of an evaluation: what base and snapshots say about the slates of users.

Users are sampled in groups of a fixed size, each at uniform numbers of its own. So the groups can be
dealt to any number of jobs, and the texts stay the same, bit for bit.

In: LM, snapshots, users. Out: texts; as parts of several jobs, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shielded_recrl.errors import UserError
from shielded_recrl.json_parts import JsonPart
from shielded_recrl.rl.evaluation.base import Triple
from shielded_recrl.rl.evaluation.snapshots import set_adapter
from shielded_recrl.rl.rollout import decode, sample
from shielded_recrl.rl.settings import SamplingSettings
from shielded_recrl.shards import WHOLE, Shard, items
from shielded_recrl.shield.serving import Serving

# Texts sampled at a time, if no user has more; the cache of keys and values grows with it.
GENERATION_BATCH = 128


class Text(NamedTuple):
    """One explanation; step 0 is before training."""

    step: int
    user: int
    item: int
    position: int
    text: str


class Texts(JsonPart):
    """The texts of a shard."""

    texts: list[Text]


class Group(NamedTuple):
    """Users whose texts are sampled together.

    Attributes:
        users: [U].
        uniforms: numbers in [0, 1), float64 [U, items of a user, longest text].
    """

    users: np.ndarray
    uniforms: Tensor


def groups(
    users: np.ndarray, per_user: int, longest: int, seed: int, shard: Shard = WHOLE
) -> Iterator[Group]:
    """A shard's groups of users, in order.

    Args:
        users: of the whole slate.
        per_user: items explained to each, at the most.
        longest: tokens of a text, at the most.
        seed: of the run.
        shard: which groups; all of them by default.
    """
    size = max(1, GENERATION_BATCH // per_user)
    mine = items(len(users), size, shard)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, mine.stop, size):
        part = users[start : start + size]
        # Numbers of users before this shard's are drawn, too: those behind depend on no shard.
        uniforms = torch.rand(
            (len(part), per_user, longest), generator=generator, dtype=torch.float64
        )
        if start >= mine.start:
            yield Group(part, uniforms)


def generate(
    model: torch.nn.Module,
    serving: Serving,
    snapshots: Mapping[int, dict[str, np.ndarray]],
    slates: Callable[[np.ndarray], list[Triple]],
    asked: Iterable[Group],
    sampling: SamplingSettings,
) -> list[Text]:
    """The texts about the slates of some groups, before training and at each snapshot.

    Args:
        model: PEFT model; the last snapshot stays in its adapter.
        serving: histories and prompts.
        snapshots: adapter weights by step.
        slates: (user, item, position) of users.
        asked: the groups.
        sampling: temperature and nucleus.
    """
    tokenizer, texts = serving.prompts.tokenizer, []
    for users, uniforms in asked:
        if not (triples := slates(users)):
            continue
        places = np.searchsorted(users, [user for user, _, _ in triples])
        numbers = uniforms[places, [position - 1 for _, _, position in triples]]
        requests = [serving.request(user, item) for user, item, _ in triples]
        for step in (0, *snapshots):
            if step:
                set_adapter(model, snapshots[step])
            with nullcontext() if step else model.disable_adapter():
                rollout = sample(
                    model,
                    [request.prompt for request in requests],
                    tokenizer,
                    numbers,
                    sampling.temperature,
                    sampling.top_p,
                    [len(request.prompt) - len(request.prefix) for request in requests],
                )
            texts += [
                Text(step, *triple, text)
                for triple, text in zip(triples, decode(rollout, tokenizer), strict=True)
            ]
    return texts


def by_step(
    texts: Sequence[Text], triples: Sequence[Triple], steps: Sequence[int]
) -> dict[int, list[str]]:
    """The texts of each step, in the order of the slate.

    Args:
        texts: of all groups.
        triples: the slate.
        steps: 0 and the snapshots'.

    Raises:
        UserError: they are about another slate.
    """
    found = {step: [text for text in texts if text.step == step] for step in steps}
    for step, rows in found.items():
        if [(row.user, row.item, row.position) for row in rows] != list(triples):
            raise UserError(
                f"--parts: the texts of step {step} are about other items than this job would serve; "
                "run `rl generate` and `rl evaluate` on machines of one kind"
            )
    return {step: [row.text for row in rows] for step, rows in found.items()}
