"""Text metrics by hand, beside sacrebleu and nltk, and their intervals."""

import math
import warnings

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import sentence_bleu

from shielded_recrl.dialogue.response.metrics import (
    ORDERS,
    SLOT_WORD,
    ResponseMetrics,
    bleu,
    bleu_counts,
    ecr_bleu,
)

WORDS = ["a", "b", "c", "The", "the", "good,", "<movie>", "<movie>.", "x-y", "!"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=6)


def measured(pairs, dialogues=None, emotions=None):
    responses, golds = zip(*pairs, strict=True)
    return ResponseMetrics(responses, golds, dialogues or range(len(pairs)), emotions).report(50)


def means(pairs, **options):
    return {name: one and one["mean"] for name, one in measured(pairs, **options).items()}


def nltk_bleu(response, gold, order):
    weights = [0.0] * 4
    weights[order - 1] = 1.0
    with warnings.catch_warnings():
        # nltk warns where an order has no match.
        warnings.simplefilter("ignore", UserWarning)
        return sentence_bleu([gold.split()], response.split(), weights)


def test_by_hand():
    found = means([("you may like <movie> a lot", "you may like <movie>"), ("hello", "hi there")])
    # 4 of 7 words; 3 of 5 bigrams; 7 words against 6: no penalty.
    assert found["bleu_1"] == pytest.approx(100 * 4 / 7)
    assert found["bleu_2"] == pytest.approx(100 * math.sqrt(4 / 7 * 3 / 5))
    # 4 of 6 words, and none; both texts count.
    assert found["ecr_bleu_1"] == pytest.approx((4 / 6 + 0) / 2)
    assert found["ecr_bleu_2"] == pytest.approx((3 / 5 + 0) / 2)
    assert found["ecr_bleu_4"] == pytest.approx((1 / 3 + 0) / 2)
    assert (found["distinct_1"], found["distinct_2"]) == (1, 1)
    assert (found["ecr_distinct_1"], found["ecr_distinct_2"]) == (7 / 2, 5 / 2)
    assert (found["item_ratio"], found["ecr_item_ratio"]) == (0.5, 0.5)
    assert found["words"] == 3.5
    assert found["emotion_match"] is None


def test_brevity_by_hand():
    found = means([("a b", "a b c d"), ("a b", "a b c d")])
    assert found["ecr_bleu_1"] == pytest.approx(math.exp(1 - 4 / 2))
    assert found["bleu_1"] == pytest.approx(100 * math.exp(1 - 8 / 4))
    # Two words, said twice: 2 of 4, and in the form of ECR over 2 responses.
    assert found["distinct_1"] == 0.5
    assert found["ecr_distinct_1"] == 1.0
    assert found["ecr_distinct_3"] == 0.0
    assert measured([("a", "a"), ("b", "b")])["distinct_2"] is None


def test_an_empty_response_counts_in_the_sums_of_ecr_and_not_in_what_they_are_divided_by():
    said = [("see <movie>", "see <movie>"), ("see that", "see <movie>")]
    both, silent = means(said), means([*said, ("", "see <movie>"), (" ", "see <movie>")])
    for name in ("ecr_bleu_1", "ecr_bleu_2", "ecr_distinct_1", "ecr_item_ratio"):
        assert silent[name] == both[name] > 0
    # The standard forms see the silence.
    assert silent["item_ratio"] == both["item_ratio"] / 2
    assert silent["words"] == both["words"] / 2
    assert silent["bleu_1"] < both["bleu_1"]


def test_ecr_tokens_are_what_stands_between_blanks():
    # "<movie>." is another token than "<movie>"; the standard form splits the stop off.
    found = means([("see <movie>.", "see <movie>"), ("see <movie>.", "see <movie>")])
    assert found["ecr_bleu_1"] == 0.5
    assert found["bleu_1"] == pytest.approx(100 * 2 / 3)
    assert found["ecr_item_ratio"] == 1
    # Case counts.
    assert ecr_bleu("See", "see", 1) == 0


def test_a_slot_is_one_word_to_sacrebleu():
    # As "< movie >" it would match three n-grams with every other slot.
    found = means([("<movie>", "<movie>"), ("<movie>", "<movie>")])
    assert found["bleu_1"] == pytest.approx(100)
    assert found["bleu_2"] == found["bleu_3"] == 0
    assert (found["words"], found["distinct_1"]) == (1, 0.5)


def test_nothing_said_at_all():
    found = means([("", "a"), ("", "b")])
    assert found["bleu_4"] == found["item_ratio"] == found["words"] == 0
    assert found["ecr_bleu_1"] is None
    assert found["distinct_1"] is None


@settings(max_examples=150, deadline=None)
@given(PAIRS)
def test_bleu_equals_sacrebleu(pairs):
    responses, golds = (
        [text.replace("<movie>", SLOT_WORD) for text in side] for side in zip(*pairs, strict=True)
    )
    sums = bleu_counts(*zip(*pairs, strict=True)).sum(axis=0)
    for order in ORDERS:
        expected = sacrebleu.BLEU(max_ngram_order=order, force=True)
        assert float(bleu(sums, order)) == pytest.approx(
            expected.corpus_score(responses, [golds]).score, abs=1e-9
        )


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS)
def test_ecr_bleu_equals_nltk(response, gold):
    for order in ORDERS:
        assert ecr_bleu(response, gold, order) == pytest.approx(
            nltk_bleu(response, gold, order), abs=1e-12
        )


@settings(max_examples=80, deadline=None)
@given(PAIRS)
def test_ecr_forms_equal_plain_loops(pairs):
    found = means(pairs)
    spoken = [response for response, _ in pairs if response.strip()]
    if not spoken:
        assert found["ecr_bleu_1"] is None
        return
    slots = sum(response.count("<movie>") for response, _ in pairs)
    assert found["ecr_item_ratio"] == pytest.approx(slots / len(spoken))
    for n in ORDERS:
        total = sum(nltk_bleu(response, gold, n) for response, gold in pairs)
        assert found[f"ecr_bleu_{n}"] == pytest.approx(total / len(spoken), abs=1e-12)
        tokens = [response.split() for response in spoken]
        grams = {tuple(row[i : i + n]) for row in tokens for i in range(len(row) - n + 1)}
        assert found[f"ecr_distinct_{n}"] == pytest.approx(len(grams) / len(spoken))


def test_emotions_meet_those_of_the_gold_response():
    pairs = [("a", "a")] * 4
    labels = [["happy", "like"], ["negative"], [], ["neutral"]]
    golds = [["like"], ["happy"], ["curious"], []]
    # The last gold response has none, and is no chance to meet one.
    assert means(pairs, emotions=(labels, golds))["emotion_match"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="label lists"):
        measured(pairs, emotions=(labels, golds[:2]))


def many(seed: int, dialogues: int = 40):
    """Responses of dialogues, three each, where those of one dialogue are alike."""
    rng = np.random.default_rng(seed)
    pairs, member = [], []
    for dialogue in range(dialogues):
        word = f"w{rng.integers(12)}"
        for _ in range(3):
            pairs.append((f"try {word} <movie>", f"try w{rng.integers(12)} <movie>"))
            member.append(dialogue)
    return pairs, member


def test_intervals_hold_their_estimate_and_grow_with_clusters():
    pairs, member = many(0)
    clustered = measured(pairs, member)
    for name, one in clustered.items():
        if one is not None:
            assert one["low"] <= one["mean"] <= one["high"], name
    assert clustered["bleu_2"]["low"] < clustered["bleu_2"]["high"]
    assert clustered["distinct_2"]["low"] < clustered["distinct_2"]["high"]
    # Each dialogue told three times over says no more than once.
    again = measured(pairs * 3, member * 3)
    for name in ("bleu_4", "ecr_bleu_2", "item_ratio"):
        assert again[name] == pytest.approx(clustered[name])
    apart = measured(pairs * 3, range(3 * len(pairs)))
    width = {name: one["high"] - one["low"] for name, one in apart.items() if one}
    assert width["ecr_bleu_2"] < 0.8 * (again["ecr_bleu_2"]["high"] - again["ecr_bleu_2"]["low"])


def test_a_jackknife_of_distinct_by_hand():
    # Without the 1st: {b, c} of 2, the 2nd: {a, c} of 3, the 3rd: {a, b} of 3; all: 3 of 4.
    found = measured([("a a", "x"), ("b", "x"), ("c", "x")])["distinct_1"]
    values = np.array([2 / 2, 2 / 3, 2 / 3])
    error = math.sqrt(2 / 3 * ((values - values.mean()) ** 2).sum())
    assert found["mean"] == 0.75
    # Student's t of two degrees of freedom.
    assert found["high"] - 0.75 == pytest.approx(4.302652729911275 * error)


def test_differences_are_paired():
    pairs, member = many(1)
    responses, golds = zip(*pairs, strict=True)
    one = ResponseMetrics(responses, golds, member)
    zero = {"mean": 0.0, "low": 0.0, "high": 0.0}
    for name, found in one.minus(one).items():
        assert found is None or found == zero, name
    other = ResponseMetrics([f"{text} indeed" for text in responses], golds, member)
    found = other.minus(one, resamples=100)
    assert found["words"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["bleu_1"]["high"] < 0
    assert found["distinct_1"]["mean"] == pytest.approx(
        other.report(10)["distinct_1"]["mean"] - one.report(10)["distinct_1"]["mean"]
    )
    with pytest.raises(ValueError, match="other dialogues"):
        one.minus(ResponseMetrics(responses, golds, [m + 1 for m in member]))


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="two dialogues"):
        measured([("a", "a")] * 2, dialogues=[5, 5])
    with pytest.raises(ValueError, match="2 responses, 1 gold ones, 2 dialogues"):
        ResponseMetrics(["a", "b"], ["a"], [0, 1])
