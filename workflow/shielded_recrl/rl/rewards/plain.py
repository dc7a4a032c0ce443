"""Rewards of the plain RLHF loop: sentiment, preferred phrase endings, a length penalty.

They need no context and no model, and read the response alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shielded_recrl.errors import UserError
from shielded_recrl.rl.text import words


class Sentiment:
    """`sentiment` in [0, 1]: VADER's compound score c (Hutto and Gilbert 2014) as (1 + c) / 2.

    A lexicon with rules, no model; a text without a word of it, or an empty one, scores 1/2.
    """

    def __init__(self):
        """
        Raises:
            UserError: the package vaderSentiment is missing.
        """
        # Only a run with this reward needs the package.
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ModuleNotFoundError as error:
            raise UserError(
                f"reward `sentiment` needs vaderSentiment ({error}); pip install vaderSentiment"
            ) from error
        self.analyzer = SentimentIntensityAnalyzer()

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], context: Sequence[Any]
    ) -> dict[str, Tensor]:
        """`sentiment`, float32 [n]."""
        compound = [self.analyzer.polarity_scores(text)["compound"] for text in responses]
        return {"sentiment": (1 + torch.tensor(compound, dtype=torch.float32)) / 2}


class Preference:
    """`preference` in {-1, 0, 1}: how a response ends.

    1 if its last words are a preferred phrase, -1 if they are a dispreferred one, 0 otherwise; of
    several phrases that fit, the longest decides. Case and punctuation do not count.
    """

    def __init__(self, preferred: Sequence[str], dispreferred: Sequence[str] = ()):
        """
        Args:
            preferred: phrases to end with.
            dispreferred: phrases not to end with.

        Raises:
            UserError: there is no phrase, one has no word, or one stands in both lists.
        """
        self.values: dict[tuple[str, ...], float] = {}
        for phrases, value in ((preferred, 1.0), (dispreferred, -1.0)):
            for phrase in phrases:
                ending = tuple(words(phrase))
                if not ending:
                    raise UserError(f"preference phrase {phrase!r} has no word; give one that has")
                if self.values.setdefault(ending, value) != value:
                    raise UserError(
                        f"phrase {phrase!r} is both preferred and dispreferred; remove one"
                    )
        if not self.values:
            raise UserError("reward `preference` has no phrase; give at least one preferred ending")
        self.sizes = sorted({len(ending) for ending in self.values}, reverse=True)

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], context: Sequence[Any]
    ) -> dict[str, Tensor]:
        """`preference`, float32 [n]."""
        values = [self._value(words(text)) for text in responses]
        return {"preference": torch.tensor(values, dtype=torch.float32)}

    def _value(self, tokens: Sequence[str]) -> float:
        endings = (tuple(tokens[-size:]) for size in self.sizes)
        return next((self.values[ending] for ending in endings if ending in self.values), 0.0)


class LengthPenalty:
    """`length_penalty` in [0, 1]: 0 from 1 to `target` words, 1 from twice as many, linear between.

    A text without a word costs 1, too, or saying nothing would be the way to be short. A penalty:
    give it a negative weight.
    """

    def __init__(self, target: int):
        """
        Args:
            target: words that cost nothing, at least 1.

        Raises:
            UserError: target below 1.
        """
        if target < 1:
            raise UserError(f"length penalty: target must be at least 1 word, got {target}")
        self.target = target

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], context: Sequence[Any]
    ) -> dict[str, Tensor]:
        """`length_penalty`, float32 [n]."""
        counts = torch.tensor([len(words(text)) for text in responses], dtype=torch.float32)
        penalty = (counts / self.target - 1).clamp(0, 1)
        return {"length_penalty": penalty.masked_fill(counts == 0, 1.0)}
