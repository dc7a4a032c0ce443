"""The comparison as words and tables; pure functions.

In: `evaluation.json` and the training log of runs. Out: sentences, and rows of cells that a terminal
and a Markdown page show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from shielded_recrl.dialogue.response.metrics import ORDERS
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, read_jsonl

SHOWN = (SUPERVISED, BEST, RL, RL_BEST, GOLD)
# In columns; that of the two supervised ones is not about RL.
SHOWN_PAIRS = PAIRS[:3]
TO_SUPERVISED, TO_BEST, BOTH_BEST = (pair_name(*pair) for pair in SHOWN_PAIRS)
JUDGES = {
    "critic": "critic, the reward",
    "rules": "judge `rules`, which the critic learned from",
    "unseen": "judge `unseen`, which no reward saw",
}
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


class Run(NamedTuple):
    """One run.

    Attributes:
        folder: of the run.
        evaluation: evaluation.json.
        log: train.jsonl.
    """

    folder: Path
    evaluation: dict[str, Any]
    log: list[dict[str, Any]]


def load_run(folder: Path) -> Run:
    """Read a run's evaluation and training log.

    Raises:
        UserError: one is missing or damaged, or not of this kind.
    """
    for name in ("evaluation.json", "train.jsonl"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: no such file; run `python -m shielded_recrl.dialogue train` and "
                "`evaluate`"
            )
    found = read_json(folder / "evaluation.json")
    log = read_jsonl(folder / "train.jsonl")
    parts = ("systems", "comparisons", "kl", "samples", "distance", "recommendations", "synthetic")
    missing = [part for part in parts if part not in found] if isinstance(found, dict) else parts
    if missing:
        raise UserError(
            f"{folder / 'evaluation.json'}: no {missing[0]}; run "
            "`python -m shielded_recrl.dialogue evaluate` again"
        )
    if not log:
        raise UserError(f"{folder / 'train.jsonl'}: no step in it; run train again")
    return Run(folder, found, log)


def label(system: str, samples: int) -> str:
    """A system's name for people.

    >>> label("rl_best_of_n", 4)
    'RL, best of 4'
    """
    return {
        SUPERVISED: "supervised",
        BEST: f"supervised, best of {samples}",
        RL: "RL",
        RL_BEST: f"RL, best of {samples}",
        GOLD: "person",
    }[system]


def best_of(evaluation: Mapping[str, Any]) -> int:
    """N."""
    return evaluation["samples"]["a_turn"][BEST]


def columns(evaluation: Mapping[str, Any]) -> Row:
    """Names of the columns of `table`."""
    names = {name: label(name, best_of(evaluation)) for name in SHOWN}
    return ("", *names.values(), *(f"{names[one]} − {names[other]}" for one, other in SHOWN_PAIRS))


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
        (f"overall, {judge}", *head_rows(evaluation, judge, ["overall"])[0][1:]) for judge in JUDGES
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
    lines = [
        f"{_name(judge)}: {_sentence(found[TO_SUPERVISED], judge, 'the supervised LM')}"
        for judge in JUDGES
    ]
    lines.append(_meaning(found[TO_SUPERVISED]["scores"]))
    lines += [
        f"{_name(judge)}, against the best of {samples}, which takes {samples} samples a turn "
        f"where RL takes one: {_sentence(found[TO_BEST], judge, f'best of {samples}')}"
        for judge in ("critic", "unseen")
    ]
    lines += [
        f"{_name(judge)}, {samples} samples a turn each: "
        f"{_sentence(found[BOTH_BEST], judge, f'best of {samples}', 'RL with best of N')}"
        for judge in ("critic", "unseen")
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
    return lines


def statement(evaluation: Mapping[str, Any]) -> str:
    """Why and that stage 2 did not move."""
    found = evaluation["recommendations"]["before"]
    recalls = ", ".join(
        f"{name} {ends(value)}" for name, value in found.items() if name.startswith("recall@")
    )
    return (
        "RL on responses cannot move the recommender: it reads recommendations.parquet and writes "
        "slots, and the k-th slot is always the k-th recommended film. Recall of new films, computed "
        f"before and after the responses were written, is the same: {recalls} on "
        f"{found['targets']} films of the test split. What does depend on the LM is how many of "
        "the recommended films a response has slots for."
    )


def over_seeds(runs: Sequence[Run]) -> list[str]:
    """How many runs show what; nothing of a single one."""
    if len(runs) < 2:
        return []
    lines = []
    for judge in JUDGES:
        found = [
            way(run.evaluation["comparisons"][TO_SUPERVISED]["scores"][judge]["overall"])
            for run in runs
        ]
        counts = ", ".join(f"{kind} in {found.count(kind)}" for kind in ("higher", "lower"))
        lines.append(f"{_name(judge)}: RL against supervised is {counts} of {len(runs)} runs.")
    return lines


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


def difference(value: Estimate | None) -> str:
    """A difference with its interval, signs shown."""
    return NONE if value is None else "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**value)


def way(value: Estimate) -> str:
    """Where a difference lies by its interval: higher, lower, or undecided."""
    return "higher" if value["low"] > 0 else "lower" if value["high"] < 0 else "undecided"


def _row(evaluation: Mapping[str, Any], name: str, pick) -> Row:
    systems, pairs = evaluation["systems"], evaluation["comparisons"]
    return (
        name,
        *(ends(pick(systems[system])) for system in SHOWN),
        *(difference(pick(pairs[pair_name(*pair)])) for pair in SHOWN_PAIRS),
    )


def _name(judge: str) -> str:
    return JUDGES[judge][0].upper() + JUDGES[judge][1:]


def _sentence(pair: Mapping[str, Any], judge: str, other: str, one: str = "RL") -> str:
    value = pair["scores"][judge]["overall"]
    said = {
        "higher": f"{one} scores higher than {other}",
        "lower": f"{one} scores lower than {other}",
        "undecided": f"no difference between {one} and {other} is shown",
    }[way(value)]
    return f"{said}, {difference(value)}."


def _meaning(scores: Mapping[str, Mapping[str, Estimate]]) -> str:
    critic, unseen = (way(scores[judge]["overall"]) for judge in ("critic", "unseen"))
    if critic != "higher":
        return "RL did not raise the score that it was trained on: nothing is gained."
    return {
        "higher": "Both agree: what RL gained by its reward, a judge that it never saw grants, too.",
        "lower": "They disagree: what RL gained by its reward, a judge that it never saw counts as a "
        "loss. That is reward over-optimisation, and this policy is no improvement.",
        "undecided": "What RL gained by its reward is not shown to be a gain for a judge that it never "
        "saw.",
    }[unseen]
