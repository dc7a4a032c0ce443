"""What a policy says before and after training, side by side: `samples.md`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from shielded_recrl.markdown import in_cell, table
from shielded_recrl.rl.rewards.base import TOTAL, Reward
from shielded_recrl.rl.rollout import decode, sample
from shielded_recrl.rl.text import words

# Texts that are sampled, and how many of them, the first, are shown.
TEXTS, SHOWN = 96, 10
# No stream of the trainer.
STREAM = 1_000_000
SENTENCE = re.compile(r"[^.!?]*[.!?]+|[^.!?]+")


class Said(NamedTuple):
    """Prompts, the responses to them, and the reward of each."""

    prompts: list[str]
    responses: list[str]
    rewards: list[float]


@torch.no_grad()
def say(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[str],
    reward: Reward,
    *,
    adapter: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Said:
    """Sample `TEXTS` responses to the prompts in turn, with the same random numbers at each call.

    Args:
        model: PEFT model.
        tokenizer: of its base.
        prompts: texts.
        reward: see `Reward`.
        adapter: whether the adapter is on.
        max_new_tokens: longest response.
        temperature: of sampling; that of training shows the policy that was trained.
        seed: of the random numbers.
    """
    asked = [prompts[index % len(prompts)] for index in range(TEXTS)]
    uniforms = np.random.default_rng([seed, 0, STREAM]).random((TEXTS, max_new_tokens))
    with nullcontext() if adapter else model.disable_adapter():
        rollout = sample(
            model,
            [tokenizer(prompt)["input_ids"] for prompt in asked],
            tokenizer,
            torch.from_numpy(uniforms),
            temperature,
        )
    responses = decode(rollout, tokenizer)
    rewards = reward(asked, responses, [None] * TEXTS)[TOTAL]
    return Said(asked, responses, rewards.tolist())


def figures(said: Said) -> dict[str, str]:
    """What tells a policy that has learned from one that says the same to everybody."""
    count = len(said.responses)
    parts = [{part.strip() for part in SENTENCE.findall(text)} for text in said.responses]
    shared = Counter(part for text in parts for part in sorted(text) or ["(empty)"])
    (sentence, most), *_ = shared.most_common(1)
    return {
        "mean reward": f"{sum(said.rewards) / count:.2f}",
        "mean words": f"{sum(len(words(text)) for text in said.responses) / count:.1f}",
        "distinct texts": f"{len(set(said.responses)) / count:.0%}",
        "commonest sentence": in_cell(f"{sentence} ({most / count:.0%} of texts)"),
    }


def page(title: str, before: Said, after: Said) -> str:
    """`samples.md`.

    Args:
        title: of the page.
        before, after: equal prompts and random numbers; adapter off and on.
    """
    old, new = figures(before), figures(after)
    said = list(zip(before.prompts, before.responses, after.responses, strict=True))[:SHOWN]
    lines = [
        f"# {title}",
        "",
        f"{TEXTS} texts, sampled as in training, with the same random numbers before and after.",
        "",
        *table(("", "before", "after"), ((name, old[name], new[name]) for name in old)),
        "",
        f"The first {SHOWN}:",
        "",
        *table(("prompt", "before", "after"), (map(in_cell, row) for row in said)),
        "",
    ]
    return "\n".join(lines)
