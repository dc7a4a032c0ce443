"""What a response LM is trained on: a prompt and the response to it as one text."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from shielded_recrl.explainer.pretrain import Example


def example(prompt: Sequence[int], answer: Sequence[int], context_weight: float) -> Example:
    """Prompt and response as one text; its first token has nothing before it and no weight."""
    weights = [context_weight] * len(prompt) + [1.0] * len(answer)
    return Example((*prompt, *answer), (0.0, *weights[1:]))


def shuffled(rows: Sequence[Example], rng: random.Random) -> Iterator[Example]:
    """Endless rows: all of them in a random order, then all of them in another."""
    while True:
        yield from rng.sample(rows, len(rows))
