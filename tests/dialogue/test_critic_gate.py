"""The critic's gate: it lets pass who knows what the judges know, and nobody else."""

import numpy as np
import polars as pl
import pytest

from shielded_recrl.dialogue.critique.gate import gate, is_plain, report_of_critic
from shielded_recrl.dialogue.critique.judged import KEYS
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.errors import UserError


def held_out(pairs=40):
    """Rows, scores, and the critic that knows them."""
    table = pl.DataFrame(
        [
            (pair // 2, pair, "valid", kind, "Some text")
            for pair in range(pairs)
            for kind in ("gold", "sampled", "corrupted:cut")
        ],
        schema=KEYS,
        orient="row",
    )
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.5, 0.9, (len(table), len(HEADS)))
    scores[2::3] -= 0.4
    return table, scores


def passed(table, scores, predicted):
    gate(report_of_critic(table, scores, predicted, scores[is_plain(table)].mean(axis=0), 200, 0))


def test_the_gate_lets_pass_who_knows():
    table, scores = held_out()
    passed(table, scores, scores)
    passed(table, scores, scores + np.random.default_rng(1).normal(0, 0.05, scores.shape))


def test_the_gate_stops_who_tells_broken_from_whole_and_nothing_else():
    table, scores = held_out()
    predicted = np.where(is_plain(table)[:, None], 0.7, 0.3) * np.ones_like(scores)
    with pytest.raises(UserError, match=r"^critic: empathy is no better than the mean"):
        passed(table, scores, predicted)


def test_faults_without_a_persons_response_are_one_line():
    table, scores = held_out()
    left = (table["kind"] != "gold").to_numpy()
    with pytest.raises(UserError, match=r"0 held-out pairs .* corrupted:cut"):
        passed(table.filter(left), scores[left], scores[left])


@pytest.mark.parametrize("head", HEADS)
def test_the_gate_stops_a_head_that_is_the_mean(head):
    table, scores = held_out()
    predicted = scores.copy()
    predicted[:, HEADS.index(head)] = scores[:, HEADS.index(head)].mean()
    with pytest.raises(UserError, match=f"^critic: {head} is no better than the mean"):
        passed(table, scores, predicted)


def test_the_gate_stops_what_may_be_chance():
    """A head that is better than the mean, but by no more than luck."""
    table, scores = held_out(4)
    rng = np.random.default_rng(3)
    predicted = scores.copy()
    predicted[:, 0] = scores[:, 0].mean() + 0.3 * rng.normal(0, 0.2, len(table))
    report = report_of_critic(table, scores, predicted, scores.mean(axis=0), 200, 0)
    assert not report["heads"]["empathy"]["gain"]["low"] > 0
    with pytest.raises(UserError, match="empathy"):
        gate(report)


def test_the_gate_stops_who_likes_a_fault():
    table, scores = held_out()
    predicted = scores.copy()
    # Nearly right in squares, and wrong in order.
    predicted[2::3, -1] = predicted[0::3, -1] + 0.01
    scores[2::3, -1] = predicted[2::3, -1] - 0.02
    with pytest.raises(UserError, match=r"with the fault `cut` in a share 0\.0000"):
        passed(table, scores, predicted)


def test_knowing_what_is_empty_does_not_pass():
    table, scores = held_out()
    text = pl.when(pl.col("kind") == "gold").then(pl.col("text")).otherwise(pl.lit(""))
    table = table.with_columns(text=text)
    scores[table["text"].to_numpy() == ""] = 0
    predicted = np.where(scores > 0, scores[0::3].mean(axis=0), 0)
    with pytest.raises(UserError, match="no better than the mean"):
        passed(table, scores, predicted)


def test_held_out_scores_that_do_not_vary_are_one_line():
    table, scores = held_out()
    scores[:, 1] = 0.25
    with pytest.raises(UserError, match=r"give informativeness 0\.25 to every held-out response"):
        passed(table, scores, scores)
