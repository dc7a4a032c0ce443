"""The click model of training: by hand, monotone, and no relative of the evaluation's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.rl.evaluation.simulator import user_bias as simulated_bias
from shielded_recrl.rl.rewards.click import BIAS_SCALE, click_probability, user_bias

PLAIN = {
    "coherence": 0.8,
    "words": 12,
    "patience": 10,
    "features": 0.5,
    "similarity": 0.25,
    "relevance": 0.7,
    "bias": -0.2,
}
SHARE = st.floats(0, 1)


def test_by_hand():
    """-2 - 0.2 + 0.7 + 2 * 0.5 + 2 * 0.25 = 0, so attraction 1/2; two words beyond patience."""
    assert click_probability(**PLAIN) == pytest.approx(0.8 * 0.97**2 * 0.5)
    warm = click_probability(**{**PLAIN, "relevance": 2.7, "words": 10})
    assert warm == pytest.approx(0.8 / (1 + math.exp(-2)))


@given(name=st.sampled_from(["coherence", "features", "similarity", "relevance"]), a=SHARE, b=SHARE)
def test_it_rises_with_what_is_good(name, a, b):
    low, high = sorted((a, b))
    assert click_probability(**{**PLAIN, name: low}) <= click_probability(**{**PLAIN, name: high})


@given(relevance=st.floats(-1e4, 1e4), words=st.integers(0, 10**5), coherence=SHARE)
def test_it_is_a_probability(relevance, words, coherence):
    values = {**PLAIN, "relevance": relevance, "words": words, "coherence": coherence}
    assert 0 <= click_probability(**values) <= coherence


def test_length_costs_nothing_up_to_the_patience():
    short, whole, long = (click_probability(**{**PLAIN, "words": n}) for n in (1, 10, 40))
    assert short == whole > long > 0


def test_the_user_bias():
    values = np.array([user_bias(user) for user in range(2000)])
    assert values.mean() == pytest.approx(0, abs=0.03)
    assert values.std() == pytest.approx(BIAS_SCALE, rel=0.06)
    simulated = np.array([simulated_bias(user, BIAS_SCALE, 20_177) for user in range(2000)])
    assert abs(np.corrcoef(values, simulated)[0, 1]) < 0.1
