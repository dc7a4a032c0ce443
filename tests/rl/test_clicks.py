"""Simulated click rates before and after training: by hand, for either simulator."""

import json

import numpy as np
import pytest

from shielded_recrl.rl.evaluation.base import Simulator, click_rates
from shielded_recrl.rl.evaluation.calibration import calibration_report
from shielded_recrl.rl.evaluation.clicks import (
    PUBLISHED_RELATIVE_CTR,
    calibration,
    click_report,
    quality_weight_sweep,
    simulator_reports,
)
from shielded_recrl.rl.evaluation.slate import Slate, slate_users, top_triples
from shielded_recrl.rl.settings import EvaluationSettings

SETTINGS = EvaluationSettings(users=5, items_per_user=2, sessions=40, bootstrap=50)
LOW, HIGH = np.full(10, 0.2), np.full(10, 0.9)
NAMES = ["claims", "examination"]


@pytest.fixture
def slate(world):
    serving = world.serving()
    users = slate_users(serving.roles.heldout, SETTINGS, seed=1)
    scores = np.random.default_rng(0).normal(size=(len(users), serving.splits.n_items + 1))
    return Slate(serving, top_triples(serving, users, scores, 2), SETTINGS, seed=1)


def measured(slate, quality, click) -> dict[str, np.ndarray]:
    """Columns as `Slate.measure` and `rewarded` give them, at one quality for each simulator."""
    first, second = (one.clicks(np.full(10, quality)) for one in slate.simulators)
    return {
        "quality": np.full(10, quality),
        "propensity": first.probability,
        "clicks": first.rate,
        "quality_examination": np.full(10, quality),
        "propensity_examination": second.probability,
        "clicks_examination": second.rate,
        "reward_click": np.full(10, click),
    }


@pytest.mark.parametrize("name", NAMES)
def test_click_report(slate, name):
    simulator = getattr(slate, name)
    before, after, best, empty = (
        simulator.clicks(np.full(10, quality)).rate.mean() for quality in (0.2, 0.9, 1.0, 0.0)
    )
    got = click_report(simulator, LOW, HIGH, slate.users, SETTINGS, seed=0)
    assert empty < before < after <= best
    assert (got["before"], got["after"]) == (before, after)
    assert got["relative"] == pytest.approx(after / before)
    assert got["attainable"] == pytest.approx(best / before)
    assert got["lift_share"] == pytest.approx((after - before) / (best - before))
    assert got["relative_low"] <= got["relative"] <= got["relative_high"]
    assert got["from_empty"] == pytest.approx(best / empty)
    # On the scale of lift_share: the texts' own relative CTR would lie at their own share.
    assert got["published_share"] == pytest.approx(
        (PUBLISHED_RELATIVE_CTR - 1) / (got["attainable"] - 1)
    )
    assert (got["relative"] - 1) / (got["attainable"] - 1) == pytest.approx(got["lift_share"])
    same = click_report(simulator, LOW, LOW, slate.users, SETTINGS, seed=0)
    assert (same["relative"], same["relative_low"], same["relative_high"]) == (1.0, 1.0, 1.0)
    assert (same["lift_share_low"], same["lift_share_high"]) == (0.0, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_simulator_that_ignores_quality_is_reported(slate, name):
    """Weight 0 is allowed: relative CTR is 1, and there is no lift to have a share of."""
    got = click_report(getattr(slate, name), LOW, HIGH, slate.users, SETTINGS, 0, 0.0)
    assert got["relative"] == got["attainable"] == got["from_empty"] == 1.0
    assert got["lift_share"] is None
    assert got["published_share"] is None
    json.dumps(got, allow_nan=False)


class Coin(Simulator):
    """Clicks with probability quality * weight, on draws 0.1, 0.3, 0.5, 0.7, 0.9."""

    name = "coin"
    draws = np.tile([0.1, 0.3, 0.5, 0.7, 0.9], (4, 1))
    quality_weight = 1.0

    def judge(self, text, request):
        raise NotImplementedError

    def probability(self, qualities, quality_weight):
        return qualities * quality_weight


def test_click_report_by_hand():
    """Two of five sessions, then three of five, of five: lift share 1/3. At half the weight 1, 2, 3."""
    low, high, users = np.full(4, 0.4), np.full(4, 0.65), np.array([1, 1, 2, 2])
    got = click_report(Coin(), low, high, users, SETTINGS, seed=0)
    assert (got["before"], got["after"]) == pytest.approx((0.4, 0.6))
    assert got["relative"] == pytest.approx(1.5)
    assert got["attainable"] == pytest.approx(2.5)
    assert got["lift_share"] == got["lift_share_low"] == pytest.approx(1 / 3)
    # Without an explanation nobody clicks.
    assert got["from_empty"] is None
    assert got["published_share"] == pytest.approx(0.225 / 1.5)
    half = click_report(Coin(), low, high, users, SETTINGS, seed=0, quality_weight=0.5)
    assert (half["before"], half["after"]) == pytest.approx((0.2, 0.4))
    # P = 0.5 is not above the draw 0.5: two of five at the best.
    assert half["attainable"] == pytest.approx(2.0)


def test_the_sweep_is_the_report_at_each_weight(slate):
    before, after = measured(slate, 0.2, 0.5), measured(slate, 0.9, 0.5)
    settings = SETTINGS.model_copy(update={"quality_weights": (0.0, 0.5, 2.0)})
    rows = quality_weight_sweep(slate.simulators, before, after, slate.users, settings, 0)
    assert [(row["simulator"], row["weight"]) for row in rows] == [
        (name, weight) for name in NAMES for weight in (0.0, 0.5, 2.0)
    ]
    reports = simulator_reports(slate.simulators, before, after, slate.users, settings, 0)
    assert list(reports) == NAMES
    for row in rows:
        simulator = getattr(slate, row["simulator"])
        expected = click_report(simulator, LOW, HIGH, slate.users, settings, 0, row["weight"])
        assert row == {"simulator": row["simulator"], "weight": row["weight"], **expected}
        # The weight of the setting is 0.5.
        assert (reports[row["simulator"]] == expected) is (row["weight"] == 0.5)
    for name in NAMES:
        relative = [row["relative"] for row in rows if row["simulator"] == name]
        assert 1.0 == relative[0] < relative[1] < relative[2]
    json.dumps(rows, allow_nan=False)


def test_calibration_of_both_simulators_and_of_the_reward(slate):
    before, after = measured(slate, 0.2, 0.05), measured(slate, 0.9, 0.6)
    got = calibration(slate.simulators, before, after, slate.users, SETTINGS, 0)
    assert {
        name: {source: set(part) for source, part in sources.items()}
        for name, sources in got.items()
    } == {name: {key: {"before", "after"} for key in ("own", "reward")} for name in NAMES}
    for simulator in slate.simulators:
        clicks = simulator.clicks(HIGH)
        arguments = (slate.users, 40, 10, 50, 0)
        sources = got[simulator.name]
        assert sources["own"]["after"] == calibration_report(*clicks, *arguments)
        assert sources["reward"]["after"] == calibration_report(
            np.full(10, 0.6), clicks.rate, *arguments
        )
        # One predicted value is one bin, and its error the difference of the means.
        rate = simulator.clicks(LOW).rate.mean()
        assert sources["reward"]["before"]["ece"] == pytest.approx(abs(rate - 0.05))
        assert sources["own"]["before"]["ece"] < sources["reward"]["before"]["ece"]
    json.dumps(got, allow_nan=False)


def test_clicks_are_paired_over_texts(slate):
    """The same draws at every call: only the texts that changed change their clicks."""
    for simulator in slate.simulators:
        better = np.where(np.arange(10) == 3, 1.0, 0.2)
        low, high = simulator.clicks(LOW), simulator.clicks(better)
        same = np.arange(10) != 3
        np.testing.assert_array_equal(low.rate[same], high.rate[same])
        assert high.probability[3] > low.probability[3]
        np.testing.assert_array_equal(low.rate, click_rates(low.probability, simulator.draws))
