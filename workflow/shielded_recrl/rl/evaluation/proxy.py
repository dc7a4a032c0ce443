"""The reward of training on held-out texts, beside what it stands for.

In: the reward, texts of each snapshot, the log of training. Out: sections `reward` and
`overoptimisation` of evaluation.json (Gao, Schulman and Hilton 2023, "Scaling Laws for Reward Model
Overoptimization"): the reward of training is the proxy, the quality that the users of the simulator
`claims` see is the gold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from shielded_recrl.rl.evaluation.slate import Slate
from shielded_recrl.rl.rewards.base import TOTAL, Reward
from shielded_recrl.rl.settings import EvaluationSettings
from shielded_recrl.statistics import paired_bootstrap, with_ends


def rewarded(reward: Reward, texts: Sequence[str], slate: Slate) -> dict[str, np.ndarray]:
    """Total reward (`reward`) and click probability (`reward_click`) [n] of each text of a slate.

    Args:
        reward: of training; `click` is one of its components.
        texts: one a request of the slate.
        slate: requests.
    """
    prompts = slate.tokenizer.batch_decode([list(request.prompt) for request in slate.requests])
    parts = reward(prompts, texts, slate.requests)
    columns = {"reward": parts[TOTAL], "reward_click": parts["click"]}
    return {name: values.double().numpy() for name, values in columns.items()}


def ceiling(weights: Mapping[str, float]) -> float:
    """Largest total: components lie in [0, 1], penalties have a negative weight."""
    return sum(weight for weight in weights.values() if weight > 0)


def kl_between(log: Sequence[dict[str, Any]], steps: Iterable[int]) -> dict[int, float]:
    """Per-token KL to the base at each of the steps: mean over the steps since the one before.

    A single step's estimate is noisy; the mean lags behind by half the steps between. At step 0
    the policy is the base.

    >>> kl_between([{"step": 1, "kl": 0.1}, {"step": 2, "kl": 0.3}], [0, 2])
    {0: 0.0, 2: 0.2}

    Args:
        log: rows of train.jsonl.
        steps: steps to measure at, 0 among them, each a step of the log.
    """
    first, *rest = sorted(steps)
    means = {first: 0.0}
    for before, step in pairwise((first, *rest)):
        means[step] = fmean(row["kl"] for row in log if before < row["step"] <= step)
    return means


def overoptimisation(
    measured: dict[int, dict[str, np.ndarray]],
    users: np.ndarray,
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, float | int | bool]:
    """Whether gold fell from its peak while the proxy rose, with paired user-clustered intervals.

    `found` asks for both 95% intervals to lie above 0. The peak is picked among the K steps before
    the last by the same texts, so that a run with nothing to find is flagged with a probability of
    at most 0.025 K, not 0.025.

    Args:
        measured: quality and reward [n] of each text, by step.
        users: of each text.
        settings: resamples.
        seed: of the bootstrap.
    """
    last = max(measured)
    peak = max(sorted(measured), key=lambda step: measured[step]["quality"].mean())
    fall, rise = (
        paired_bootstrap(difference, settings.bootstrap, seed, users)
        for difference in (
            measured[peak]["quality"] - measured[last]["quality"],
            measured[last]["reward"] - measured[peak]["reward"],
        )
    )
    return {
        "peak": peak,
        **with_ends("gold_fall", fall),
        **with_ends("proxy_rise", rise),
        "found": fall.low > 0 and rise.low > 0,
    }


def reward_report(
    before: np.ndarray,
    after: np.ndarray,
    users: np.ndarray,
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, float]:
    """Mean reward of held-out explanations, and its gain with a user-clustered interval."""
    gain = paired_bootstrap(after - before, settings.bootstrap, seed, users)
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        **with_ends("gain", gain),
    }
