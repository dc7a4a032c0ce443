"""One run as words and tables; pure functions.

In: `evaluation.json` and the training log. Out: sentences, and rows of cells that a terminal and a
Markdown page show. What several runs say together is in `finding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from shielded_recrl.dialogue.comparison.contestants import (
    BEST,
    GOLD,
    PAIRS,
    RL,
    RL_BEST,
    SUPERVISED,
    SYSTEMS,
    pair_name,
)
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.recommender.tables import ORDER
from shielded_recrl.dialogue.response.metrics import ORDERS

SHOWN = (SUPERVISED, BEST, RL, RL_BEST, GOLD)
# In columns; that of the two supervised ones is not about RL.
SHOWN_PAIRS = PAIRS[:3]
TO_SUPERVISED, TO_BEST, BOTH_BEST = (pair_name(*pair) for pair in SHOWN_PAIRS)
CRITIC, UNSEEN = "critic", "unseen"
STANDARD = (
    *(f"bleu_{n}" for n in ORDERS),
    *(f"distinct_{n}" for n in ORDERS),
    *("item_ratio", "emotion_match", "words"),
)
ECR = (
    *(f"ecr_bleu_{n}" for n in ORDERS),
    *(f"ecr_distinct_{n}" for n in ORDERS),
    "ecr_item_ratio",
)
NONE = "–"
# What the first lines of the terminal's table say of texts.
BRIEF = ("bleu_2", "bleu_4", "distinct_2", "item_ratio", "emotion_match", "words")

Row = tuple[str, ...]
Estimate = Mapping[str, float]


def judges(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of those who scored: the critic first, and last the one that settles it."""
    found = evaluation["systems"][RL]["scores"]
    return (CRITIC, *(name for name in found if name not in (CRITIC, UNSEEN)), UNSEEN)


def taught(evaluation: Mapping[str, Any], judge: str) -> bool:
    """Whether the critic learned from a judge, or is it."""
    return judge == CRITIC or evaluation["judges"][judge]["taught"]


def judge_name(evaluation: Mapping[str, Any], judge: str) -> str:
    """A judge, and what it has to do with the reward.

    >>> about = {"judges": {"rules": {"taught": True}, "unseen": {"taught": False}}}
    >>> judge_name(about, "rules"), judge_name(about, "unseen")
    ('judge `rules`, which the critic learned from', 'judge `unseen`, which no reward saw')
    """
    if judge == CRITIC:
        return "critic, the reward"
    seen = "which the critic learned from" if taught(evaluation, judge) else "which no reward saw"
    return f"judge `{judge}`, {seen}"


def unanswered(evaluation: Mapping[str, Any]) -> list[str]:
    """Of each judge that left responses without a score, how many."""
    lines = []
    for judge, about in evaluation["judges"].items():
        if sum(about["unanswered"].values()):
            counts = ", ".join(
                f"{label(system, best_of(evaluation))} {count}"
                for system, count in about["unanswered"].items()
            )
            lines.append(
                f"Judge `{judge}` gave no score to some of the {evaluation['turns']} responses of "
                f"each, which are left out of its means: {counts}."
            )
    return lines


def capital(text: str) -> str:
    """The same as the beginning of a sentence."""
    return text[0].upper() + text[1:]


def label(system: str, samples: int) -> str:
    """A system's name for people.

    >>> label("rl_best_of_n", 4)
    'best of 4 of RL'
    """
    return {
        SUPERVISED: "supervised",
        BEST: f"best of {samples}",
        RL: "RL",
        RL_BEST: f"best of {samples} of RL",
        GOLD: "person",
    }[system]


def best_of(evaluation: Mapping[str, Any]) -> int:
    """N."""
    return evaluation["samples"]["a_turn"][BEST]


def columns(evaluation: Mapping[str, Any]) -> Row:
    """Names of the columns of `table`."""
    names = {name: label(name, best_of(evaluation)) for name in SHOWN}
    return (
        "measure",
        *names.values(),
        *(f"{names[one]} − {names[other]}" for one, other in SHOWN_PAIRS),
    )


def head_rows(evaluation: Mapping[str, Any], judge: str, heads: Sequence[str] = HEADS) -> list[Row]:
    """A row for each head of a judge."""
    return [
        _row(evaluation, head, lambda part, head=head: part["scores"][judge][head])
        for head in heads
    ]


def text_rows(evaluation: Mapping[str, Any], names: Sequence[str]) -> list[Row]:
    """A row for each metric of texts."""
    return [
        _row(evaluation, name, lambda part, name=name: part["text"].get(name)) for name in names
    ]


def named_row(evaluation: Mapping[str, Any]) -> Row:
    """Share of the films named in truth that the response names."""
    return _row(evaluation, "films of the person named", lambda part: part["named"])


def brief(evaluation: Mapping[str, Any]) -> list[Row]:
    """The rows that a terminal shows."""
    heads = [
        (f"overall, {judge}", *head_rows(evaluation, judge, ["overall"])[0][1:])
        for judge in judges(evaluation)
    ]
    return [*heads, *text_rows(evaluation, BRIEF), named_row(evaluation)]


def cost_rows(evaluation: Mapping[str, Any]) -> list[Row]:
    """Samples and distance to the supervised LM: system, samples a turn, KL."""
    kl, of_turn = evaluation["kl"], evaluation["samples"]["a_turn"]
    bound = kl["best_of_n"]["per_response_at_most"]
    far = {
        SUPERVISED: ("0", "0"),
        BEST: (NONE, f"at most {bound:.3f}"),
        RL: (ends(kl["rl"]["per_token"]), ends(kl["rl"]["per_response"])),
        RL_BEST: (NONE, NONE),
    }
    samples = best_of(evaluation)
    return [(label(name, samples), str(of_turn[name]), *far[name]) for name in SYSTEMS]


def critic_rows(report: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """What the critic learned, by head, and how it ranks faults, for two tables."""
    heads = [
        (head, f"{row['mse']:.4f}", f"{row['mse_mean']:.4f}", difference(row["gain"], 4))
        for head, row in ((head, report["heads"][head]) for head in HEADS)
    ]
    faults = [
        (fault, f"{row['pairs']:,}", ends(row["share"]))
        for fault, row in report["corruptions"].items()
    ]
    return heads, faults


def recommender_rows(group: Mapping[str, Any]) -> list[Row]:
    """Recall@10 of each system, and how far the recommender is ahead of it.

    Args:
        group: targets of one group in the recommender's evaluation.json.
    """
    return [
        (
            name,
            ends(group["systems"][name]["recall@10"]),
            difference(group["ahead_of"].get(name, {}).get("recall@10")),
        )
        for name in ORDER
        if name in group["systems"]
    ]


def log_rows(log: Sequence[Mapping[str, Any]]) -> list[Row]:
    """First, middle and last step of the training log."""
    keys = ("step", "reward", "reward_critic", "reward_format", "reward_support")
    keys += ("reward_repetition", "reward_copying", "kl", "entropy", "words", "ended")
    places = dict.fromkeys((0, len(log) // 2, len(log) - 1))
    return [
        keys,
        *(
            tuple(
                str(log[place][key]) if key == "step" else f"{log[place][key]:.3f}" for key in keys
            )
            for place in places
        ),
    ]


def verdicts(evaluation: Mapping[str, Any]) -> list[str]:
    """What is shown and what is not, in sentences."""
    samples = best_of(evaluation)
    training = evaluation["samples"]
    found = evaluation["comparisons"]
    names = {judge: capital(judge_name(evaluation, judge)) for judge in judges(evaluation)}
    settling = {
        judge: name
        for judge, name in names.items()
        if judge == CRITIC or not taught(evaluation, judge)
    }
    lines = [
        f"{name}: {_sentence(found[TO_SUPERVISED], judge, 'the supervised LM')}"
        for judge, name in names.items()
    ]
    lines.append(meaning(found[TO_SUPERVISED]["scores"]))
    lines += [
        f"{name}, against the best of {samples}, which takes {samples} samples a turn where RL takes "
        f"one: {_sentence(found[TO_BEST], judge, f'best of {samples}')}"
        for judge, name in settling.items()
    ]
    lines += [
        f"{name}, {samples} samples a turn each: "
        f"{_sentence(found[BOTH_BEST], judge, f'best of {samples}', f'best of {samples} of RL')}"
        for judge, name in settling.items()
    ]
    kl = evaluation["kl"]["rl"]
    words = found[TO_SUPERVISED]["text"]["words"]
    lines.append(
        f"RL took {training['training']} samples to train and has cost as many as best of {samples} "
        f"after {training['even_after']:.0f} turns."
    )
    lines.append(
        f"RL is {ends(kl['per_token'])} nats a token from the supervised LM "
        f"({ends(kl['per_response'])} a response; the best of {samples} at most "
        f"{evaluation['kl']['best_of_n']['per_response_at_most']:.3f}); its responses differ in "
        f"length by {difference(words)} words."
    )
    return lines + unanswered(evaluation)


def meaning(scores: Mapping[str, Mapping[str, Estimate]]) -> str:
    """What follows for what one RL gained by its reward, from its differences to the supervised LM."""
    critic, unseen = (way(scores[judge]["overall"]) for judge in (CRITIC, UNSEEN))
    if critic != "higher":
        return (
            "RL is not shown to have raised the score that it was trained on"
            + {
                "higher": "; a gain is shown by a judge that never saw it, all the same.",
                "lower": "; a loss is shown by a judge that never saw it.",
                "undecided": ", nor is a gain or a loss shown by a judge that never saw it.",
            }[unseen]
        )
    return {
        "higher": "Both agree: what RL gained by its reward, a judge that it never saw grants, too.",
        "lower": "They disagree: what RL gained by its reward, a judge that it never saw counts as a "
        "loss. That is reward over-optimisation, and this policy is no improvement.",
        "undecided": "What RL gained by its reward is not shown to be a gain for a judge that it never "
        "saw.",
    }[unseen]


def statement(evaluation: Mapping[str, Any]) -> str:
    """Why and that stage 2 did not move."""
    before = evaluation["recommendations"]["before"]
    recalls = ", ".join(
        f"{name} {ends(value)}" for name, value in before.items() if name.startswith("recall@")
    )
    return (
        "RL on responses cannot move the recommender: it reads recommendations.parquet and writes "
        "slots, and the k-th slot is always the k-th recommended film. Recall of new films, before "
        f"training and at evaluation, is the same: {recalls} on {before['targets']} films of "
        "the test split. What does depend on the LM is how many of the recommended films a response "
        "has slots for."
    )


def aligned(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a table for a terminal; the first column to the left, others to the right.

    >>> list(aligned([("", "a"), ("head", "1.5")]))
    ['        a', 'head  1.5']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def ends(value: Estimate | None) -> str:
    """An estimate with its interval.

    >>> ends({"mean": 0.5, "low": 0.4, "high": 0.6})
    '0.500 [0.400, 0.600]'
    """
    return NONE if value is None else "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**value)


def difference(value: Estimate | None, places: int = 3) -> str:
    """A difference with its interval, signs shown.

    >>> difference({"mean": 0.5, "low": -0.25, "high": 1.25}, 2)
    '+0.50 [-0.25, +1.25]'
    """
    if value is None:
        return NONE
    mean, low, high = (f"{value[key]:+.{places}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def way(value: Estimate | None) -> str:
    """Where a difference lies by its interval: higher, lower, or undecided."""
    if value is None:
        return "undecided"
    return "higher" if value["low"] > 0 else "lower" if value["high"] < 0 else "undecided"


def _row(
    evaluation: Mapping[str, Any],
    name: str,
    pick: Callable[[Mapping[str, Any]], Estimate | None],
) -> Row:
    systems, pairs = evaluation["systems"], evaluation["comparisons"]
    return (
        name,
        *(ends(pick(systems[system])) for system in SHOWN),
        *(difference(pick(pairs[pair_name(*pair)])) for pair in SHOWN_PAIRS),
    )


def _sentence(pair: Mapping[str, Any], judge: str, other: str, one: str = "RL") -> str:
    value = pair["scores"][judge]["overall"]
    said = {
        "higher": f"{one} scores higher than {other}",
        "lower": f"{one} scores lower than {other}",
        "undecided": f"no difference between {one} and {other} is shown",
    }[way(value)]
    return f"{said}, {difference(value)}."
