"""What several trainings show together; pure functions.

In: evaluated runs that differ by their seed alone. Out: the finding in sentences, and tables that have
every training beside the mean.

An interval of a run is of test dialogues. How trainings differ is another matter: it is told by each
of them, by how many lie where, and by the least and the greatest, since an interval of three would
be a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from shielded_recrl.dialogue.comparison import text
from shielded_recrl.dialogue.comparison.contestants import (
    BEST,
    PAIRS,
    RL,
    RL_BEST,
    SUPERVISED,
    pair_name,
)
from shielded_recrl.dialogue.comparison.runs import Run
from shielded_recrl.dialogue.comparison.text import (
    CRITIC,
    NONE,
    UNSEEN,
    Estimate,
    Row,
    best_of,
    capital,
    difference,
    judge_name,
    label,
    way,
)


class Spread(NamedTuple):
    """A difference in every training.

    Attributes:
        values: of each run, with the interval of its test dialogues; None where nothing was scored.
    """

    values: tuple[Estimate | None, ...]

    @property
    def means(self) -> list[float]:
        """Of each training that has one."""
        return [value["mean"] for value in self.values if value is not None]

    def count(self, where: str) -> int:
        """Trainings whose interval lies `higher` or `lower` than 0, or is `undecided`."""
        return sum(way(value) == where for value in self.values)

    def summary(self, places: int = 3) -> str:
        """Mean over trainings, and from where to where they lie.

        >>> Spread(({"mean": 0.2, "low": 0.1, "high": 0.3}, {"mean": -0.1, "low": -0.2, "high": 0.0})).summary()
        '+0.050, from -0.100 to +0.200'
        """
        if not self.means:
            return NONE
        mean, least, most = (f"{find(self.means):+.{places}f}" for find in (fmean, min, max))
        return f"{mean}, from {least} to {most}"


def spread(runs: Sequence[Run], pair: tuple[str, str], judge: str) -> Spread:
    """A judge's overall score, the first system of a pair less the second."""
    name = pair_name(*pair)
    return Spread(
        tuple(run.evaluation["comparisons"][name]["scores"][judge]["overall"] for run in runs)
    )


def headline(runs: Sequence[Run]) -> str:
    """What the judge that no reward saw says of RL against the supervised LM."""
    found = spread(runs, (RL, SUPERVISED), UNSEEN)
    name = judge_name(runs[0].evaluation, UNSEEN)
    if len(runs) == 1:
        said = {"higher": "above", "lower": "below", "undecided": "not shown to differ from"}
        return (
            f"By {name}, RL is {said[way(found.values[0])]} the supervised LM: "
            f"{difference(found.values[0])}. That is one training, and another may differ by more."
        )
    above, below, across = (_number(found.count(k)) for k in ("higher", "lower", "undecided"))
    return (
        f"By {name}, RL is above the supervised LM in {above} of {len(runs)} trainings and below it in "
        f"{below}; in {across} the interval holds 0. The mean difference is {found.summary()}."
    )


def meaning(runs: Sequence[Run]) -> str:
    """What follows for what RL gained by its reward."""
    if len(runs) == 1:
        return text.meaning(runs[0].evaluation["comparisons"][pair_name(RL, SUPERVISED)]["scores"])
    critic, unseen = (spread(runs, (RL, SUPERVISED), judge) for judge in (CRITIC, UNSEEN))
    judged = [
        (way(reward), way(value))
        for reward, value in zip(critic.values, unseen.values, strict=True)
    ]
    raised = [found for reward, found in judged if reward == "higher"]
    others = [found for reward, found in judged if reward != "higher"]
    said = (
        "RL is shown to have raised the score that it was trained on in "
        f"{_number(len(raised))} of {len(runs)}."
    )
    if raised:
        blame = ", reward over-optimisation" if "lower" in raised else ""
        said += f" Where it is, {_found(raised)}{blame}."
    if others:
        said += f" Where it is not shown to have, {_found(others)}."
    return said


def points(runs: Sequence[Run]) -> list[str]:
    """The finding in points: other judges, best of N, length and variety."""
    first = runs[0].evaluation
    samples = best_of(first)
    lines = []
    if len(runs) > 1:
        lines.append(f"Trainings lie apart: {_apart(spread(runs, (RL, SUPERVISED), UNSEEN))}.")
    lines += [
        f"{capital(judge_name(first, judge))}: {_counts(runs, (RL, SUPERVISED), judge)}."
        for judge in runs[0].judges
        if judge != UNSEEN
    ]
    lines += [
        f"Against {label(BEST, samples)}, which takes {samples} samples a turn where RL takes one, by "
        f"`{UNSEEN}`: {_counts(runs, (RL, BEST), UNSEEN)}.",
        f"{capital(label(RL_BEST, samples))} less that of supervised, by `{UNSEEN}`: "
        f"{_counts(runs, (RL_BEST, BEST), UNSEEN)}.",
    ]
    said = [run.evaluation["comparisons"][pair_name(RL, SUPERVISED)]["text"] for run in runs]
    words, variety = (Spread(tuple(one[key] for one in said)) for key in ("words", "distinct_2"))
    lines.append(
        f"Length and variety, RL less supervised: words {words.summary(1)}; distinct-2 "
        f"{variety.summary()}."
    )
    return lines


def table_rows(runs: Sequence[Run], pair: tuple[str, str]) -> list[Row]:
    """A row for each judge: every training, the mean, and how many lie where."""
    rows = []
    for judge in runs[0].judges:
        found = spread(runs, pair, judge)
        places = " / ".join(str(found.count(way)) for way in ("higher", "undecided", "lower"))
        rows.append((f"`{judge}`", *map(difference, found.values), found.summary(), places))
    return rows


def table_header(runs: Sequence[Run]) -> Row:
    """Names of the columns of `table_rows`."""
    seeds = [f"seed {run.seed}" for run in runs]
    return ("judge", *seeds, "mean, least to greatest", "above / across / below 0")


def pair_label(pair: tuple[str, str], samples: int) -> str:
    """A pair's name for people.

    >>> pair_label(("rl", "best_of_n"), 4)
    'RL − best of 4'
    """
    one, other = (label(system, samples) for system in pair)
    return f"{one} − {other}"


def pairs(samples: int) -> dict[tuple[str, str], str]:
    """Pairs that are compared, with their names."""
    return {pair: pair_label(pair, samples) for pair in PAIRS}


def _counts(runs: Sequence[Run], pair: tuple[str, str], judge: str) -> str:
    found = spread(runs, pair, judge)
    if len(runs) == 1:
        return difference(found.values[0])
    return (
        f"above in {_number(found.count('higher'))} of {len(runs)}, below in "
        f"{_number(found.count('lower'))}; mean {found.summary()}"
    )


def _apart(found: Spread) -> str:
    widths = [value["high"] - value["low"] for value in found.values if value is not None]
    return (
        f"by `{UNSEEN}`, {max(found.means) - min(found.means):.3f} from the least to the greatest, "
        f"where the interval of one is {fmean(widths):.3f} wide on average"
    )


def _found(ways: Sequence[str]) -> str:
    gained, lost = (_number(ways.count(where)) for where in ("higher", "lower"))
    return f"the judge that never saw it finds a gain in {gained} of {len(ways)}, a loss in {lost}"


def _number(count: int) -> str:
    return str(count) if count else "none"
