"""The reward of the study's explanations, from what a run has loaded."""

from __future__ import annotations

from functools import cache

import numpy as np
from torch import nn

from shielded_recrl.explainer.lm import causal_lm
from shielded_recrl.explainer.prompts import Request
from shielded_recrl.rl.rewards.base import Composite
from shielded_recrl.rl.rewards.explanation import explanation_reward
from shielded_recrl.rl.settings import RewardSettings
from shielded_recrl.shield.serving import Serving


def study_reward(
    serving: Serving,
    users: np.ndarray,
    items: np.ndarray,
    model: nn.Module,
    settings: RewardSettings,
) -> Composite:
    """The reward of explanations.

    Args:
        serving: whose catalogue and tokenizer it reads.
        users, items: SASRec states [U + 1, d_r] and embeddings [I + 1, d_r]: how relevant an item
            is, as the ranker sees it.
        model: the LM whose input embeddings it compares texts by.
        settings: weights.
    """

    @cache
    def scale(user: int) -> tuple[float, float]:
        scores = items[1:] @ users[user]
        return float(scores.mean()), float(scores.std())

    def relevance(request: Request) -> float:
        mean, spread = scale(request.user)
        score = float(items[request.item] @ users[request.user])
        return (score - mean) / spread if spread > 0 else 0.0

    embeddings = causal_lm(model).get_input_embeddings().weight.detach().float().cpu()
    prompts = serving.prompts
    return explanation_reward(prompts.items, prompts.tokenizer, embeddings, relevance, settings)
