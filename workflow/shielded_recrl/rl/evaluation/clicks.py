"""Simulated click-through rates before and after training, and how they hang on the simulator.

In: simulators and the qualities of the texts of a slate. Out: sections `ctr`, `simulators`,
`quality_weight_sweep` and `calibration` of evaluation.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from shielded_recrl.rl.evaluation.base import Simulator
from shielded_recrl.rl.evaluation.calibration import calibration_report
from shielded_recrl.rl.evaluation.slate import column
from shielded_recrl.rl.settings import EvaluationSettings
from shielded_recrl.statistics import bootstrap, finite_or_null, with_ends

# Relative CTR published for explanations trained by reinforcement learning, to be placed on the
# scale of a simulator: what is attainable there hangs on its quality_weight and on the base's texts.
PUBLISHED_RELATIVE_CTR = 1.225

# Columns of the texts of one slate, [n] each, by name.
Measured = Mapping[str, np.ndarray]


def click_report(
    simulator: Simulator,
    before: np.ndarray,
    after: np.ndarray,
    users: np.ndarray,
    settings: EvaluationSettings,
    seed: int,
    quality_weight: float | None = None,
) -> dict[str, float | None]:
    """Click-through rates with user-clustered paired bootstrap intervals.

    `relative` is after / before; `attainable` is the relative CTR if every text had quality 1;
    `lift_share` is (after - before) / (attainable - before), in rates. `from_empty` is the CTR at
    quality 1 over that at quality 0, all that texts can do in this simulator; `published_share` is
    where the published relative CTR lies on the scale of `lift_share`, above 1 out of reach.

    Args:
        simulator: whose clicks.
        before, after: qualities of the texts, [n].
        users: of each text.
        settings: resamples.
        seed: of the bootstrap.
        quality_weight: other than the simulator's own.
    """
    shown = {
        "before": before,
        "after": after,
        "best": np.ones(len(users)),
        "empty": np.zeros(len(users)),
    }
    rates = {
        name: simulator.clicks(quality, quality_weight).rate for name, quality in shown.items()
    }
    means = {name: rate.mean() for name, rate in rates.items()}
    columns = np.stack([rates[name] for name in ("before", "after", "best")], axis=1)
    # Without a click, or with no lift to be had, a ratio is undefined and reported as null.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, share = (
            bootstrap(columns, statistic, settings.bootstrap, seed, users)
            for statistic in (
                lambda s: s[..., 1] / s[..., 0],
                lambda s: (s[..., 1] - s[..., 0]) / (s[..., 2] - s[..., 0]),
            )
        )
        attainable = means["best"] / means["before"]
        from_empty = means["best"] / means["empty"]
        published = (PUBLISHED_RELATIVE_CTR - 1) / (attainable - 1)
    return finite_or_null(
        {
            "before": means["before"],
            "after": means["after"],
            **with_ends("relative", ratio),
            "attainable": attainable,
            **with_ends("lift_share", share),
            "from_empty": from_empty,
            "published_share": published,
        }
    )


def simulator_reports(
    simulators: Iterable[Simulator],
    before: Measured,
    after: Measured,
    users: np.ndarray,
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, dict[str, float | None]]:
    """`click_report` of each simulator, by name."""
    return {
        simulator.name: click_report(
            simulator, *_qualities(simulator, before, after), users, settings, seed
        )
        for simulator in simulators
    }


def quality_weight_sweep(
    simulators: Iterable[Simulator],
    before: Measured,
    after: Measured,
    users: np.ndarray,
    settings: EvaluationSettings,
    seed: int,
) -> list[dict[str, Any]]:
    """`click_report` of each simulator at each of `quality_weights`, on the same draws."""
    return [
        {
            "simulator": simulator.name,
            "weight": weight,
            **click_report(
                simulator, *_qualities(simulator, before, after), users, settings, seed, weight
            ),
        }
        for simulator in simulators
        for weight in settings.quality_weights
    ]


def calibration(
    simulators: Iterable[Simulator],
    before: Measured,
    after: Measured,
    users: np.ndarray,
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, dict[str, dict[str, Any]]]:
    """How well P(click) foretells each simulator's clicks: [simulator][own | reward][before | after].

    `own` is the simulator's probability, off by the sampling of sessions alone; `reward` is the
    click model of training, which was made for no simulator's clicks.

    Args:
        simulators: whose clicks.
        before, after: columns of `Slate.measure` and `reward_click`.
        users: of each text.
        settings: sessions, bins and resamples.
        seed: of the bootstrap.
    """
    return {
        simulator.name: {
            source: {
                when: calibration_report(
                    texts[name],
                    texts[column("clicks", simulator.name)],
                    users,
                    settings.sessions,
                    settings.calibration_bins,
                    settings.bootstrap,
                    seed,
                )
                for when, texts in (("before", before), ("after", after))
            }
            for source, name in (
                ("own", column("propensity", simulator.name)),
                ("reward", "reward_click"),
            )
        }
        for simulator in simulators
    }


def _qualities(simulator: Simulator, *batches: Measured) -> list[np.ndarray]:
    return [texts[column("quality", simulator.name)] for texts in batches]
