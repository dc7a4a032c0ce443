"""Scores of distributions over emotions."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from shielded_recrl.dialogue.emotion.labels import EMOTIONS, NOSTALGIA
from shielded_recrl.dialogue.emotion.scores import calibration_error, scores
from shielded_recrl.dialogue.settings import AnnotateSettings


@pytest.fixture(scope="module")
def judged():
    """Random distributions and emotions, of which some comments show two."""
    rng = np.random.default_rng(0)
    found = rng.dirichlet(np.ones(9), 400)
    shown = np.zeros((400, 9), dtype=bool)
    truth = rng.integers(0, 8, 400)
    truth = np.where(truth >= NOSTALGIA, truth + 1, truth)
    shown[np.arange(400), np.where(rng.random(400) < 0.6, found.argmax(1), truth)] = True
    shown[:, NOSTALGIA] = False
    shown[~shown.any(1), 0] = True
    shown[:50, 5] = True
    return found, shown, scores(found, shown, AnnotateSettings(), 4000, 0)


def test_scores_are_those_of_scikit_learn(judged):
    found, shown, report = judged
    single = shown.sum(1) == 1
    truth, guess = shown[single].argmax(1), found[single].argmax(1)
    assert report["comments"] == single.sum()
    assert report["accuracy"]["mean"] == pytest.approx(accuracy_score(truth, guess))
    occur = np.unique(truth)
    assert report["macro_f1"]["mean"] == pytest.approx(
        f1_score(truth, guess, labels=occur, average="macro")
    )
    by_emotion = f1_score(truth, guess, labels=occur, average=None)
    assert [report["emotions"][EMOTIONS[i]]["f1"] for i in occur] == pytest.approx(by_emotion)
    assert "nostalgia" not in report["emotions"]
    assert np.sum(report["confusion"]) == single.sum()


def test_intervals_are_those_of_drawn_comments(judged):
    found, shown, report = judged
    single = shown.sum(1) == 1
    right = (shown & (found == found.max(1, keepdims=True))).any(1)[single]
    rng = np.random.default_rng(1)
    drawn = right[rng.integers(0, len(right), (4000, len(right)))].mean(1)
    assert [report["accuracy"]["low"], report["accuracy"]["high"]] == pytest.approx(
        np.percentile(drawn, [2.5, 97.5]), abs=0.006
    )
    assert report["macro_f1"]["low"] < report["macro_f1"]["mean"] < report["macro_f1"]["high"]


def test_any_and_kept_are_over_all_comments():
    found = np.array([[0.6, 0.4, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0.2, 0, 0, 0.8, 0, 0, 0]])
    shown = np.zeros((2, 9), dtype=bool)
    shown[0, [0, 4]] = shown[1, 2] = True
    report = scores(found, shown, AnnotateSettings(), 10, 0)
    assert report["any"]["mean"] == 0.5
    assert report["accuracy"]["mean"] == 0
    # Kept: like and curious; neutral and happy. Right: like and happy, of three shown.
    assert report["kept"] == {
        "precision": 0.5,
        "recall": pytest.approx(2 / 3),
        "per_comment": 2.0,
    }


def test_calibration_error_by_hand():
    # Bin .2 to .3: .25 said, .5 right; bin .9 to 1: 1 said, 1 right.
    error = calibration_error(np.array([0.25, 0.25, 1.0, 1.0]), np.array([True, False, True, True]))
    assert error == pytest.approx(0.125)
