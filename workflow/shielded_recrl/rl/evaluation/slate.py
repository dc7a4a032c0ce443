"""The slates explained to held-out users, and their simulated clicks.

In: histories, roles, served scores of the untrained adapter. Out: explanations of the users' top
items, their quality, and the clicks of the simulator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from shielded_recrl.explainer.prompts import Request
from shielded_recrl.rl.evaluation.simulator import (
    ClaimIndex,
    click_draws,
    click_probability,
    click_rates,
    judge,
    relevance,
    user_bias,
)
from shielded_recrl.rl.rollout import decode, sample
from shielded_recrl.rl.settings import EvaluationSettings, SamplingSettings
from shielded_recrl.rl.text import words
from shielded_recrl.shield.serving import Serving, top_items

# Texts sampled at a time; the cache of keys and values grows with it.
GENERATION_BATCH = 128


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
            settings: simulator and sizes.
            seed: seed of the simulator.
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
        self.settings = settings
        self.index = ClaimIndex(serving.prompts.items)
        self.relevance = relevance(serving.splits, [(u, i) for u, i, _ in self.triples])
        self.bias = np.array([user_bias(u, settings.bias_scale, seed) for u, _, _ in self.triples])
        self.draws = click_draws(self.triples, settings.sessions, seed)

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
        """Quality, click probability, click rate, words, claims and supported claims of each text."""
        judged = [
            judge(text, request, self.index)
            for text, request in zip(texts, self.requests, strict=True)
        ]
        return {
            **self.clicks(np.array([one.quality for one in judged])),
            "words": np.array([len(words(text)) for text in texts]),
            "claims": np.array([one.claims for one in judged]),
            "supported": np.array([one.supported for one in judged]),
        }

    def clicks(self, qualities: np.ndarray) -> dict[str, np.ndarray]:
        """Click probability and click rate at given qualities."""
        probability = click_probability(self.relevance, qualities, self.bias, self.settings)
        return {
            "quality": qualities,
            "propensity": probability,
            "clicks": click_rates(probability, self.draws),
        }

    def rows(
        self, texts: dict[int, list[str]], measured: dict[int, dict[str, np.ndarray]]
    ) -> list[dict[str, Any]]:
        """Rows of explanations.jsonl."""
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
                "quality": float(measured[step]["quality"][row]),
                "propensity": float(measured[step]["propensity"][row]),
            }
            for step, batch in texts.items()
            for row, ((user, item, position), request, text) in enumerate(
                zip(self.triples, self.requests, batch, strict=True)
            )
        ]
