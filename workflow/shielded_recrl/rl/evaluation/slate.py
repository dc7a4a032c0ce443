"""The slates explained to held-out users, and their simulated clicks.

In: histories, roles, served scores of the untrained adapter. Out: explanations of the users' top
items, and what the simulators make of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from shielded_recrl.explainer.prompts import Request
from shielded_recrl.rl.evaluation.examination import ExaminationSimulator
from shielded_recrl.rl.evaluation.simulator import ClaimsSimulator
from shielded_recrl.rl.rollout import decode, sample
from shielded_recrl.rl.settings import EvaluationSettings, SamplingSettings
from shielded_recrl.rl.text import words
from shielded_recrl.shield.serving import Serving, top_items

# Texts sampled at a time; the cache of keys and values grows with it.
GENERATION_BATCH = 128
# What a simulator says of a text, as columns of explanations.jsonl.
SIMULATED = ("quality", "propensity", "clicks")


def column(name: str, simulator: str) -> str:
    """Name of a simulator's column; those of the first simulator go by their plain names.

    >>> column("quality", "claims"), column("quality", "examination")
    ('quality', 'quality_examination')
    """
    return name if simulator == ClaimsSimulator.name else f"{name}_{simulator}"


class Slate:
    """The (user, item, position) triples explained to held-out users, and their simulated clicks."""

    def __init__(
        self,
        serving: Serving,
        scores: np.ndarray,
        people: np.ndarray,
        settings: EvaluationSettings,
        seed: int,
    ):
        """
        Args:
            serving: histories, roles and prompts.
            scores: served scores [U, I + 1] of the untrained adapter.
            people: users of the rows of `scores`.
            settings: simulators and sizes.
            seed: seed of the simulators.
        """
        heldout = serving.roles.heldout
        drawn = np.random.default_rng([seed, 1]).permutation(heldout)[: settings.users]
        users = np.sort(drawn)
        rows = len(people) - len(heldout) + np.searchsorted(heldout, users)
        lists = top_items(scores[rows], serving.splits, "test", users, settings.items_per_user)
        self.triples = [
            (int(user), int(item), position)
            for user, items in zip(users, lists, strict=True)
            for position, item in enumerate(items, start=1)
            if item > 0
        ]
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

    def explain(
        self, model: torch.nn.Module, explanation_tokens: int, sampling: SamplingSettings, seed: int
    ) -> list[str]:
        """One explanation a triple."""
        generator = torch.Generator().manual_seed(seed)
        texts = []
        for start in range(0, len(self.requests), GENERATION_BATCH):
            batch = self.requests[start : start + GENERATION_BATCH]
            size = (len(batch), explanation_tokens)
            rollout = sample(
                model,
                [request.prompt for request in batch],
                self.tokenizer,
                torch.rand(size, generator=generator, dtype=torch.float64),
                sampling.temperature,
                sampling.top_p,
                [len(request.prompt) - len(request.prefix) for request in batch],
            )
            texts += decode(rollout, self.tokenizer)
        return texts

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
