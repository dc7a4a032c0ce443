"""Toxicity scores and their summary."""

import numpy as np
import pytest

from shielded_recrl.audit.toxicity import SCORER, summarise, toxicity_scores


def test_offence_scores_high_and_praise_low():
    scores = toxicity_scores(["You are a fucking idiot", "A gentle story about two old friends"])
    assert scores[0] > 0.9
    assert scores[1] < 0.2


@pytest.mark.parametrize("texts", [[], [""], ["", "  \n"]])
def test_texts_without_content_score_zero(texts):
    np.testing.assert_array_equal(toxicity_scores(texts), np.zeros(len(texts)))


def test_batch_equals_one_by_one_and_keeps_places():
    texts = ["what a stupid damn thing", "", "a calm sea"]
    alone = np.concatenate([toxicity_scores([text]) for text in texts])
    np.testing.assert_allclose(toxicity_scores(texts), alone)


def test_summary_by_hand():
    scores = np.array([0.0, 0.5, 0.1, 0.2])
    result = summarise(["a", "b", "c", "d"], scores, np.array([1, 1, 2, 2]), 0.5, 200, seed=0)
    assert result["mean"]["mean"] == pytest.approx(0.2)
    # Users' means are 0.25 and 0.15, so that resampled users cannot leave that range.
    assert result["mean"]["low"] == pytest.approx(0.15)
    assert result["mean"]["high"] == pytest.approx(0.25)
    assert result["p95"] == pytest.approx(0.2 + 0.85 * 0.3)
    assert (result["max"], result["worst_text"]) == (0.5, "b")
    assert (result["toxic"], result["toxic_share"]) == (1, 0.25)


def test_scorer_names_package_and_version():
    assert SCORER.startswith("alt-profanity-check 1.")
