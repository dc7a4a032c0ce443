"""The slates explained to held-out users, and their simulated clicks.

In: histories, roles, served scores of the untrained adapter. Out: the users' top items, and what the
simulators make of texts about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shielded_recrl.explainer.prompts import Request
from shielded_recrl.rl.evaluation.base import Triple
from shielded_recrl.rl.evaluation.examination import ExaminationSimulator
from shielded_recrl.rl.evaluation.simulator import ClaimsSimulator
from shielded_recrl.rl.settings import EvaluationSettings, SlateSettings
from shielded_recrl.rl.text import words
from shielded_recrl.shield.serving import Serving, top_items

# What a simulator says of a text, as columns of explanations.jsonl.
SIMULATED = ("quality", "propensity", "clicks")


def column(name: str, simulator: str) -> str:
    """Name of a simulator's column; those of the first simulator go by their plain names.

    >>> column("quality", "claims"), column("quality", "examination")
    ('quality', 'quality_examination')
    """
    return name if simulator == ClaimsSimulator.name else f"{name}_{simulator}"


def slate_users(heldout: np.ndarray, settings: SlateSettings, seed: int) -> np.ndarray:
    """The held-out users whose top items are explained, ascending."""
    drawn = np.random.default_rng([seed, 1]).permutation(heldout)[: settings.users]
    return np.sort(drawn)


def top_triples(
    serving: Serving, users: np.ndarray, scores: np.ndarray, per_user: int
) -> list[Triple]:
    """User, item and position of the items at the top of each user's list.

    Args:
        serving: what the users have seen.
        users: [U].
        scores: served scores [U, I + 1].
        per_user: items of each user, at the most.
    """
    lists = top_items(scores, serving.splits, "test", users, per_user)
    return [
        (int(user), int(item), position)
        for user, items in zip(users, lists, strict=True)
        for position, item in enumerate(items, start=1)
        if item > 0
    ]


class Slate:
    """The (user, item, position) triples explained to held-out users, and their simulated clicks."""

    def __init__(
        self,
        serving: Serving,
        triples: Sequence[Triple],
        settings: EvaluationSettings,
        seed: int,
    ):
        """
        Args:
            serving: histories, roles and prompts.
            triples: see `top_triples`.
            settings: simulators.
            seed: seed of the simulators.
        """
        self.triples = list(triples)
        self.requests: list[Request] = [
            serving.request(user, item) for user, item, _ in self.triples
        ]
        self.tokenizer = serving.prompts.tokenizer
        splits, shown = serving.splits, (self.triples, settings, seed)
        self.claims = ClaimsSimulator(serving.prompts, splits, *shown)
        self.examination = ExaminationSimulator(serving.prompts, splits, *shown)

    @property
    def simulators(self) -> tuple[ClaimsSimulator, ExaminationSimulator]:
        """Both simulators of these triples."""
        return self.claims, self.examination

    @property
    def users(self) -> np.ndarray:
        """User of each triple."""
        return np.array([user for user, _, _ in self.triples])

    def measure(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Columns [n] of a text each.

        Words, claims and supported claims; and by each simulator, under the names of `column`:
        quality, click probability (`propensity`) and click rate (`clicks`).
        """
        pairs = list(zip(texts, self.requests, strict=True))
        columns = {"words": np.array([len(words(text)) for text in texts])}
        for simulator in self.simulators:
            judged = [simulator.judge(*pair) for pair in pairs]
            qualities = np.array([one.quality for one in judged])
            simulated = (qualities, *simulator.clicks(qualities))
            for name, values in zip(SIMULATED, simulated, strict=True):
                columns[column(name, simulator.name)] = values
            if simulator is self.claims:
                columns["claims"] = np.array([one.claims for one in judged])
                columns["supported"] = np.array([one.supported for one in judged])
        return columns

    def rows(
        self, texts: dict[int, list[str]], measured: dict[int, dict[str, np.ndarray]]
    ) -> list[dict[str, Any]]:
        """Rows of explanations.jsonl."""
        simulated = [
            column(name, simulator.name) for simulator in self.simulators for name in SIMULATED
        ]
        return [
            {
                "step": step,
                "user": user,
                "item": item,
                "position": position,
                "title": request.about.title,
                "categories": list(request.about.categories),
                "history": [past.title for past in request.history],
                "text": text,
                **{name: float(measured[step][name][row]) for name in simulated},
            }
            for step, batch in texts.items()
            for row, ((user, item, position), request, text) in enumerate(
                zip(self.triples, self.requests, batch, strict=True)
            )
        ]
