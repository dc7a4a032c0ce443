"""Strengths, win rates and agreement against closed forms, known models and other libraries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from statsmodels.stats.inter_rater import fleiss_kappa

from shielded_recrl.report.human.key import Row
from shielded_recrl.report.human.preferences import (
    PRIOR,
    Rater,
    Vote,
    agreement,
    bradley_terry,
    coincidences,
    krippendorff_alpha,
    outcome,
    strengths,
)


def wins_of(pairs, systems):
    wins = np.zeros((systems, systems))
    for winner, loser in pairs:
        wins[winner, loser] += 1
    return wins


@settings(deadline=None)
@given(st.floats(0, 200), st.floats(0, 200))
def test_two_systems_equal_the_closed_form(first, second):
    found = bradley_terry(np.array([[0, first], [second, 0]]))
    half = np.log((first + PRIOR) / (second + PRIOR)) / 2
    np.testing.assert_allclose(found, [half, -half], atol=1e-7)


def test_strengths_of_a_known_model_are_recovered():
    truth = np.array([1.2, 0.4, -0.3, -1.3])
    rng = np.random.default_rng(0)
    wins = np.zeros((4, 4))
    for a in range(4):
        for b in range(a):
            won = rng.binomial(20_000, expit(truth[a] - truth[b]))
            wins[a, b] += won
            wins[b, a] += 20_000 - won
    # Standard errors are about 0.01.
    np.testing.assert_allclose(bradley_terry(wins), truth - truth.mean(), atol=0.05)


@settings(deadline=None, max_examples=30)
@given(arrays(np.int64, (4, 4), elements=st.integers(0, 40)))
def test_strengths_maximise_the_penalised_likelihood(wins):
    wins = wins * (1 - np.eye(4))
    padded = wins + PRIOR * (1 - np.eye(4))

    def loss(free):
        s = np.append(free, 0.0)
        return -(padded * log_expit(s[:, None] - s[None, :])).sum()

    oracle = np.append(minimize(loss, np.zeros(3), method="BFGS", tol=1e-9).x, 0.0)
    np.testing.assert_allclose(bradley_terry(wins), oracle - oracle.mean(), atol=1e-3)


def test_a_system_that_never_loses_has_a_finite_strength():
    found = bradley_terry(wins_of([(0, 1)] * 30 + [(1, 2)] * 30, 3))
    assert np.isfinite(found).all()
    assert found[0] > found[1] > found[2]


def test_a_tie_is_half_a_win_for_either():
    ties = [Vote(user, "a", "b", 0.5) for user in range(8)]
    split = [Vote(user, "a", "b", float(user % 2)) for user in range(8)]
    found = [strengths(votes, ["a", "b"], 50, 0) for votes in (ties, split)]
    assert found[0]["a"]["mean"] == pytest.approx(0, abs=1e-9)
    assert found[1]["a"]["mean"] == pytest.approx(0, abs=1e-9)
    assert found[0]["a"]["low"] == pytest.approx(found[0]["a"]["high"], abs=1e-9)
    assert found[1]["a"]["low"] < -0.3 < 0.3 < found[1]["a"]["high"]


def test_intervals_of_strengths_are_over_users_and_cover_a_known_model():
    truth = {"a": 0.6, "b": 0.0, "c": -0.6}
    covered = 0
    for trial in range(20):
        rng = np.random.default_rng(trial)
        votes = [
            Vote(user, a, b, float(rng.random() < expit(truth[a] - truth[b])))
            for user in range(80)
            for a, b in (("a", "b"), ("a", "c"), ("b", "c"))
        ]
        found = strengths(votes, list(truth), 100, trial)
        covered += sum(found[name]["low"] <= truth[name] <= found[name]["high"] for name in truth)
        assert sum(one["mean"] for one in found.values()) == pytest.approx(0, abs=1e-6)
    # 57 of 60 are expected.
    assert covered >= 50
    twice = [vote for vote in votes for _ in range(2)]
    widths = [
        one["high"] - one["low"]
        for one in (strengths(cast, list(truth), 200, 0)["a"] for cast in (votes, twice))
    ]
    # A second voice of the same users narrows nothing: the prior counts a little less.
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_alpha_of_the_textbook():
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability": nominal alpha is 0.743."""
    nan = 0
    told = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
            [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
        ]
    )
    counts = np.stack([(told == kind).sum(axis=0) for kind in range(1, 6)], axis=1)
    counts = counts[counts.sum(axis=1) >= 2]
    alpha = krippendorff_alpha(coincidences(counts).sum(axis=0))
    assert alpha == pytest.approx(0.743, abs=5e-4)


@settings(deadline=None)
@given(arrays(np.int64, (12, 5), elements=st.integers(0, 2)))
def test_alpha_is_fleiss_kappa_up_to_the_size_of_the_sample(told):
    """alpha = kappa + (1 - kappa) / (rows * raters), where every row has every rater's answer."""
    counts = np.stack([(told == kind).sum(axis=1) for kind in range(3)], axis=1)
    if (counts.sum(axis=0) > 0).sum() < 2:
        return
    kappa = fleiss_kappa(counts)
    alpha = krippendorff_alpha(coincidences(counts).sum(axis=0))
    assert alpha == pytest.approx(kappa + (1 - kappa) / told.size)


def row_of(number, user=None):
    return Row.model_construct(id=f"r{number}", user=number if user is None else user)


def told_by(name, answers):
    return Rater(name, {f"r{n}": answer for n, answer in enumerate(answers) if answer})


def test_agreement_knows_missing_answers_and_says_where_it_is_undefined():
    rows = [row_of(number) for number in range(6)]
    first = told_by("first", ["left", "right", "tie", "left", "right", None])
    same = told_by("same", ["left", "right", "tie", "left", None, "left"])
    found = agreement(rows, [first, same], 200, 0)
    assert found["alpha"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert (found["rows"], found["raters"]) == (4, 2)
    assert agreement(rows, [first], 200, 0) is None
    constant = told_by("constant", ["left"] * 6)
    assert agreement(rows, [constant, constant], 200, 0) is None
    against = told_by("against", ["right", "left", "left", "right", "left", "tie"])
    assert agreement(rows, [first, against], 200, 0)["alpha"]["high"] < 0.2


def test_agreement_of_coins_is_none():
    rng = np.random.default_rng(0)
    answers = rng.choice(["left", "right", "tie"], (3, 300))
    rows = [row_of(number) for number in range(300)]
    raters = [told_by(str(n), one) for n, one in enumerate(answers)]
    found = agreement(rows, raters, 500, 0)["alpha"]
    assert found["low"] < 0 < found["high"]
    assert abs(found["mean"]) < 0.06


def test_an_answer_is_counted_for_the_system_on_its_side():
    row = Row.model_construct(left="b", right="a")
    assert [outcome(row, answer, "a") for answer in ("left", "right", "tie")] == [0, 1, 0.5]
    assert [outcome(row, answer, "b") for answer in ("left", "right", "tie")] == [1, 0, 0.5]
