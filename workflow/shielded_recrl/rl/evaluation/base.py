"""What a click simulator is: it judges a text, gives P(click) at a quality, and draws clicks.

Draws are keyed by (seed, user, item, position), so two policies that show the same items differ by
their texts alone (common random numbers).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from shielded_recrl.explainer.prompts import Request

# User, item, position from 1.
Triple = tuple[int, int, int]


class Judged(Protocol):
    """What a simulator makes of one text; its quality lies in [0, 1)."""

    @property
    def quality(self) -> float: ...


class Clicks(NamedTuple):
    """P(click) of each text, [n], and the share of sessions with a click, [n]."""

    probability: np.ndarray
    rate: np.ndarray


class Simulator(ABC):
    """One simulated audience of the n (user, item, position) triples of a slate.

    Attributes:
        name: its key in evaluation.json.
        draws: uniform [n, sessions].
        quality_weight: of the setting, where none is given.
    """

    name: ClassVar[str]
    draws: np.ndarray
    quality_weight: float

    @abstractmethod
    def judge(self, text: str, request: Request) -> Judged:
        """Read one text; an empty one has quality 0."""

    @abstractmethod
    def probability(self, qualities: np.ndarray, quality_weight: float) -> np.ndarray:
        """P(click) [n] of the slate's triples at these qualities [n]."""

    def clicks(self, qualities: np.ndarray, quality_weight: float | None = None) -> Clicks:
        """Clicks at given qualities [n], on the same draws at every call."""
        weight = self.quality_weight if quality_weight is None else quality_weight
        probability = self.probability(np.asarray(qualities), weight)
        return Clicks(probability, click_rates(probability, self.draws))


def click_draws(
    triples: Sequence[Triple], sessions: int, seed: int, stream: tuple[int, ...] = ()
) -> np.ndarray:
    """Uniform draws [n, sessions] keyed by (seed, user, item, position).

    Args:
        triples: what is shown.
        sessions: draws a triple.
        seed: of the simulators.
        stream: put between seed and user by a simulator with draws of its own.
    """
    return np.stack(
        [
            np.random.default_rng([seed, *stream, *map(int, triple)]).random(sessions)
            for triple in triples
        ]
    )


def click_rates(probabilities: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Share of sessions with a click, [n]: a click where the draw falls below P(click)."""
    return (draws < probabilities[:, None]).mean(axis=1)


def standardised(values: np.ndarray) -> np.ndarray:
    """Values of mean 0 and standard deviation 1; zeros where all are equal."""
    values = np.asarray(values, dtype=np.float64)
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros(len(values))
