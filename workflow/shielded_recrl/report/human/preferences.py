"""Preferences from pairwise answers: win rates, Bradley-Terry strengths, agreement.

In: the key of a sheet and the answers of raters, human or not. Out: one JSON document.

Strengths are those of Bradley and Terry (1952, "Rank analysis of incomplete block designs"),
P(i beats j) = sigmoid(s_i - s_j), by choix. Agreement is Krippendorff's alpha for nominal answers
(Hayes and Krippendorff 2007, "Answering the call for a standard reliability measure"), computed
here: no library of the project has it, and Fleiss' kappa knows no missing answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from shielded_recrl.errors import UserError
from shielded_recrl.report.human.key import ANSWERS, SWAPPED, Answer, Key, Row
from shielded_recrl.statistics import bootstrap, paired_bootstrap

# Wins that each system is given against each other one: together a tie for every two.
PRIOR = 0.5
REGULARISATION = (
    "Bradley-Terry: a tie counts as half a win for either; one tie is added between every two "
    "systems of a dataset, so that strengths stay finite where one never loses."
)
# Iterations of I-LSR at most; a few dozen do, were it not for counts that are far from balanced.
ITERATIONS = 10_000


class Rater(NamedTuple):
    """Answers by id of a row; `missing` are rows left without one."""

    name: str
    answers: Mapping[str, Answer]
    missing: Sequence[str] = ()


class Vote(NamedTuple):
    """One answer to one pair: 1 where `a` was preferred, 0 where `b` was, 0.5 for a tie."""

    user: int
    a: str
    b: str
    outcome: float


def evaluate(
    key: Key,
    raters: Sequence[Rater],
    attention_threshold: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Everything that the answers tell.

    Args:
        key: of the sheet.
        raters: at least one, with answers to rows of the key.
        attention_threshold: share of attention checks passed below which a rater is left out.
        resamples: of the bootstrap over users.
        seed: of the bootstrap.

    Raises:
        UserError: no rater passes enough attention checks, or those who do answered no pair.
    """
    about = [rater_report(key, rater, attention_threshold) for rater in raters]
    kept = [rater for rater, report in zip(raters, about, strict=True) if not report["excluded"]]
    if not kept:
        raise UserError(
            f"all {len(raters)} raters pass less than {attention_threshold:.0%} of the attention "
            "checks; look at their sheets, or lower --attention-threshold"
        )
    datasets = {
        dataset: dataset_report(key, dataset, kept, resamples, seed)
        for dataset in dict.fromkeys(one.dataset for one in key.comparisons)
    }
    if not any(one["votes"] for one in datasets.values()):
        raise UserError("no pair has a valid answer: nothing to score; fill in the sheets first")
    return {
        "question": key.question,
        "compare": key.compare,
        "attention_threshold": attention_threshold,
        "regularisation": REGULARISATION,
        "raters": about,
        "datasets": datasets,
    }


def rater_report(key: Key, rater: Rater, threshold: float) -> dict[str, Any]:
    """How far one rater can be relied on.

    A check without an answer is not passed. Consistency is the share of repeated pairs that got
    the same answer, the swap of their sides undone; None where none was answered twice.
    """
    checks = key.of_kind("check")
    passed = sum(rater.answers.get(row.id) == row.sound for row in checks)
    twice = [
        (rater.answers[row.of], SWAPPED[rater.answers[row.id]])
        for row in key.of_kind("repeat")
        if row.id in rater.answers and row.of in rater.answers
    ]
    same = sum(first == again for first, again in twice)
    rate = passed / len(checks) if checks else None
    return {
        "name": rater.name,
        "answers": {
            answer: sum(given == answer for given in rater.answers.values()) for answer in ANSWERS
        },
        "missing": list(rater.missing),
        "checks": len(checks),
        "checks_passed": passed,
        "attention": rate,
        "repeats": len(twice),
        "repeats_same": same,
        "consistency": same / len(twice) if twice else None,
        "excluded": rate is not None and rate < threshold,
    }


def dataset_report(
    key: Key, dataset: str, raters: Sequence[Rater], resamples: int, seed: int
) -> dict[str, Any]:
    """Win rates, strengths and agreement on the pairs of one dataset, repeats and checks aside."""
    rows = [row for row in key.of_kind("pair") if row.dataset == dataset]
    compared = [one for one in key.comparisons if one.dataset == dataset]
    votes: list[Vote] = []
    reports = []
    for one in compared:
        own = [
            Vote(row.user, one.a, one.b, outcome(row, rater.answers[row.id], one.a))
            for row in rows
            if {row.left, row.right} == {one.a, one.b}
            for rater in raters
            if row.id in rater.answers
        ]
        votes += own
        results = np.array([vote.outcome for vote in own])
        reports.append(
            {
                "a": one.a,
                "b": one.b,
                "contexts": one.contexts,
                "identical": one.identical,
                "votes": len(own),
                "users": len({vote.user for vote in own}),
                "a_wins": int((results == 1).sum()),
                "ties": int((results == 0.5).sum()),
                "b_wins": int((results == 0).sum()),
                "win_rate": paired_bootstrap(
                    results, resamples, seed, clusters=np.array([vote.user for vote in own])
                )._asdict()
                if own
                else None,
            }
        )
    systems = list(dict.fromkeys(name for one in compared for name in (one.a, one.b)))
    return {
        "systems": systems,
        "votes": len(votes),
        "users": len({vote.user for vote in votes}),
        "comparisons": reports,
        "strengths": strengths(votes, systems, resamples, seed) if votes else {},
        "agreement": agreement(rows, raters, resamples, seed),
    }


def outcome(row: Row, answer: Answer, system: str) -> float:
    """1 where the answer prefers `system`, 0 where it prefers the other, 0.5 for a tie."""
    if answer == "tie":
        return 0.5
    return float((row.left if answer == "left" else row.right) == system)


def strengths(
    votes: Sequence[Vote], systems: Sequence[str], resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Bradley-Terry strength of each system with its user-clustered interval, in log-odds."""
    places = {name: place for place, name in enumerate(systems)}
    number = len(systems)
    wins = np.zeros((len(votes), number, number))
    for row, vote in enumerate(votes):
        a, b = places[vote.a], places[vote.b]
        wins[row, a, b] += vote.outcome
        wins[row, b, a] += 1 - vote.outcome
    columns = wins.reshape(len(votes), -1)
    users = np.array([vote.user for vote in votes])

    # Every system's bootstrap draws the same users: one fit then serves all of them.
    @cache
    def fitted(counts: bytes) -> np.ndarray:
        return bradley_terry(np.frombuffer(counts).reshape(number, number))

    def strength_of(place: int) -> Any:
        def statistic(sums: np.ndarray) -> np.ndarray:
            flat = sums.reshape(-1, number * number)
            values = np.array([fitted(counts.tobytes())[place] for counts in flat])
            return values.reshape(sums.shape[:-1])

        return statistic

    return {
        name: bootstrap(columns, strength_of(place), resamples, seed, clusters=users)._asdict()
        for name, place in places.items()
    }


def bradley_terry(wins: np.ndarray, prior: float = PRIOR) -> np.ndarray:
    """Strengths [K], of mean 0, that best explain the wins.

    For two systems the closed form is half of +-log((w_01 + prior) / (w_10 + prior)).

    Args:
        wins: [K, K]; entry i, j is how often i beat j, a tie half a time for either.
        prior: wins added to every entry off the diagonal. It is the log-density of a prior,
            prior * sum over i != j of log sigmoid(s_i - s_j).
    """
    # Takes a second to import.
    import choix

    padded = wins + prior * (1 - np.eye(len(wins)))
    return choix.ilsr_pairwise_dense(padded, max_iter=ITERATIONS)


def agreement(
    rows: Sequence[Row], raters: Sequence[Rater], resamples: int, seed: int
) -> dict[str, Any] | None:
    """Krippendorff's alpha of left, right and tie, with its user-clustered interval.

    None where no row was answered by two raters, or where all answers are the same: then nothing
    tells agreement from habit.
    """
    counts = np.array(
        [
            [sum(rater.answers.get(row.id) == answer for rater in raters) for answer in ANSWERS]
            for row in rows
        ]
    ).reshape(len(rows), len(ANSWERS))
    shared = counts.sum(axis=1) >= 2
    pairs = coincidences(counts[shared])
    if (pairs.sum(axis=(0, 1)) > 0).sum() < 2:
        return None

    def alpha(sums: np.ndarray) -> np.ndarray:
        return krippendorff_alpha(sums.reshape(*sums.shape[:-1], len(ANSWERS), len(ANSWERS)))

    users = np.array([row.user for row, both in zip(rows, shared, strict=True) if both])
    interval = bootstrap(pairs.reshape(len(pairs), -1), alpha, resamples, seed, clusters=users)
    return {
        "alpha": interval._asdict(),
        "rows": int(shared.sum()),
        "raters": sum(any(row.id in rater.answers for row in rows) for rater in raters),
    }


def coincidences(counts: np.ndarray) -> np.ndarray:
    """What each row adds to Krippendorff's coincidence matrix.

    Args:
        counts: [N, C], answers of each of C kinds to N rows, two or more to a row.

    Returns:
        [N, C, C]: ordered pairs of answers to the row, over one less than its answers.
    """
    counts = np.asarray(counts, dtype=np.float64)
    diagonal = counts[:, :, None] * np.eye(counts.shape[1])
    pairs = counts[:, :, None] * counts[:, None, :] - diagonal
    return pairs / (counts.sum(axis=1) - 1)[:, None, None]


def krippendorff_alpha(coincidence: np.ndarray) -> np.ndarray:
    """1 - observed over expected disagreement, for nominal answers.

    Args:
        coincidence: [..., C, C], summed over rows.

    Returns:
        [...]; 1 where all answers are of one kind, which nothing contradicts.
    """
    totals = coincidence.sum(axis=-1)
    answers = totals.sum(axis=-1)
    observed = answers - np.trace(coincidence, axis1=-2, axis2=-1)
    expected = (answers**2 - (totals**2).sum(axis=-1)) / (answers - 1)
    return 1 - np.divide(observed, expected, out=np.zeros_like(expected), where=expected > 0)
