"""Draw pairs of explanations of the same recommendation, each by another system.

In: folders of evaluated runs (evaluation.json, explanations.jsonl). Out: rows of a sheet, with
repeats and attention checks, in the order to show.

A system is a variant after training, or `before`: the untrained adapter. Texts are compared only
within a dataset, a seed, a user and an item, so that nothing but their author differs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, read_jsonl
from shielded_recrl.report.human.key import Comparison, Row, fault
from shielded_recrl.report.human.settings import Compare, SheetSettings

BEFORE = "before"
SOUND = "sound"
# No vowels and no digits: spreadsheets read MAR1 as a date, 12e45678 as a number, TRUE as itself.
ID_LETTERS = "bcdfghjkmnpqrstvwxz"
ID_LENGTH = 6
# Fewer words, or fewer letters of a title, may stay sensible when turned round or exchanged.
CHECK_WORDS = 6
CHECK_TITLE = 4
# A repeated pair is shown first in the first two fifths of the sheet, and again in the last two.
EARLY, LATE = 0.4, 0.6


class Explanation(BaseModel):
    """A row of explanations.jsonl, as far as it is read here."""

    model_config = ConfigDict(strict=True, frozen=True)

    step: int
    user: int
    item: int
    title: str
    categories: list[str]
    history: list[str]
    text: str
    quality: float


class Identity(BaseModel):
    """What evaluation.json tells of a run's name."""

    model_config = ConfigDict(strict=True, frozen=True)

    dataset: str
    variant: str
    seed: int


class Context(NamedTuple):
    """A recommendation that several systems explained."""

    dataset: str
    seed: int
    user: int
    item: int


class Pair(NamedTuple):
    """Two texts about one recommendation."""

    context: Context
    a: str
    b: str
    first: Explanation
    second: Explanation


Written = dict[Context, dict[str, Explanation]]


def read_written(folders: Sequence[Path], compare: Compare) -> Written:
    """What each system wrote about each recommendation.

    Args:
        folders: of evaluated runs.
        compare: `variants`: the last texts of each; `steps`: the first and the last of one.

    Raises:
        UserError: a file is missing or damaged, a run is given twice or has nothing to be
            compared with, or two runs tell different things of one recommendation.
    """
    written: Written = {}
    seen: dict[Identity, Path] = {}
    names = [_identity(folder) for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        if twin := next((seen[other] for other in seen if other == name), None):
            raise UserError(
                f"{folder}: the same dataset, variant and seed as {twin}; give one of them"
            )
        seen[name] = folder
        _check_company(folder, name, names, compare)
        path = folder / "explanations.jsonl"
        rows = _explanations(path)
        last = max((row.step for row in rows), default=0)
        if last == 0 or (compare == "steps" and min(row.step for row in rows) != 0):
            raise UserError(f"{path}: needs texts of step 0 and of a later step; evaluate a run")
        wanted = {last: name.variant} | ({0: BEFORE} if compare == "steps" else {})
        for row in rows:
            if row.step not in wanted:
                continue
            context = Context(name.dataset, name.seed, row.user, row.item)
            systems = written.setdefault(context, {})
            if wanted[row.step] in systems:
                raise UserError(
                    f"{path}: two texts of step {row.step} for user {row.user} and item "
                    f"{row.item}; evaluate the run again"
                )
            if any(_told(row) != _told(other) for other in systems.values()):
                raise UserError(
                    f"{path}: tells another title, categories or history of user {row.user} and "
                    f"item {row.item} than a run before it; give runs on the same data"
                )
            systems[wanted[row.step]] = row
    return written


def comparisons(written: Written) -> dict[Comparison, list[Pair]]:
    """Every two systems of a dataset, and the pairs of theirs that differ.

    Raises:
        UserError: two systems of a dataset explained no recommendation in common, or no two texts
            differ.
    """
    found: dict[Comparison, list[Pair]] = {}
    for dataset in dict.fromkeys(context.dataset for context in written):
        here = {key: texts for key, texts in written.items() if key.dataset == dataset}
        systems = list(dict.fromkeys(name for texts in here.values() for name in texts))
        # What training changed is counted as wins of the trained.
        systems.sort(key=lambda name: name == BEFORE)
        for a, b in combinations(systems, 2):
            both = [
                Pair(context, a, b, texts[a], texts[b])
                for context, texts in here.items()
                if a in texts and b in texts
            ]
            if not both:
                raise UserError(
                    f"{dataset}: {a} and {b} explained no recommendation in common; give runs of "
                    "the same seeds and roles"
                )
            differing = [pair for pair in both if pair.first.text != pair.second.text]
            one = Comparison(
                dataset=dataset,
                a=a,
                b=b,
                contexts=len(both),
                identical=len(both) - len(differing),
            )
            found[one] = differing
    if not any(found.values()):
        raise UserError("all texts are identical, and there is nothing to compare; give other runs")
    return found


def draw(
    pools: Mapping[Comparison, Sequence[Pair]],
    written: Written,
    settings: SheetSettings,
    seed: int,
) -> list[Row]:
    """Rows of the sheet, in the order to show.

    Args:
        pools: what may be shown, by comparison.
        written: what the attention checks are made from.
        settings: sizes.
        seed: of every draw.

    Raises:
        UserError: no text can be made into an attention check.
    """
    rng = np.random.default_rng(seed)
    turns = zip_longest(*(spread(pool, rng) for pool in pools.values()))
    pairs = [pair for turn in turns for pair in turn if pair is not None][: settings.pairs]
    rows = [
        _row(pair, on_left) for pair, on_left in zip(pairs, balanced_sides(pairs, rng), strict=True)
    ]
    places = rng.random(len(rows))
    again = rng.permutation(len(rows))[: math.ceil(settings.repeats * len(rows))]
    places[again] *= EARLY
    faulty = checks(written, math.ceil(settings.checks * len(rows)), rng)
    ids = draw_ids(len(rows) + len(again) + len(faulty), rng)
    rows = [row.model_copy(update={"id": ids.pop()}) for row in rows]
    repeats = [
        _swapped(rows[place]).model_copy(
            update={"id": ids.pop(), "kind": "repeat", "of": rows[place].id}
        )
        for place in again
    ]
    late = LATE + (1 - LATE) * rng.random(len(repeats))
    faulty = [row.model_copy(update={"id": ids.pop()}) for row in faulty]
    places = np.concatenate([places, late, rng.random(len(faulty))])
    shown = rows + repeats + faulty
    return [shown[place] for place in np.argsort(places, kind="stable")]


def spread(pool: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
    """The pairs at random, one of every user before the second of any.

    Intervals are over users: a pair of another user tells more than a second pair of the same.
    """
    turns: Counter[int] = Counter()
    order = []
    for place in rng.permutation(len(pool)):
        user = pool[place].context.user
        order.append((turns[user], pool[place]))
        turns[user] += 1
    return [pair for _, pair in sorted(order, key=lambda ranked: ranked[0])]


def balanced_sides(pairs: Sequence[Pair], rng: np.random.Generator) -> list[bool]:
    """Whether a pair's first system is on the left: in each comparison for half of the pairs."""
    members: dict[tuple[str, str, str], list[int]] = {}
    for place, pair in enumerate(pairs):
        members.setdefault((pair.context.dataset, pair.a, pair.b), []).append(place)
    left = np.zeros(len(pairs), dtype=bool)
    for places in members.values():
        half = (np.arange(len(places)) + rng.integers(2)) % 2 == 0
        left[places] = rng.permutation(half)
    return left.tolist()


def checks(written: Written, number: int, rng: np.random.Generator) -> list[Row]:
    """Attention checks without ids: a sound text beside itself spoilt, sides balanced.

    The sound texts are those that the evaluation simulator finds best, of different users where
    there are enough. The two faults take turns where the text allows both.

    Raises:
        UserError: checks are wanted, and no text can be spoilt.
    """
    if not number:
        return []
    titles: dict[str, list[str]] = {}
    for context, systems in written.items():
        titles.setdefault(context.dataset, []).extend(one.title for one in systems.values())
    catalogue = {dataset: sorted(set(names)) for dataset, names in titles.items()}
    texts = [
        (context, name, one)
        for context, systems in written.items()
        for name, one in systems.items()
    ]
    texts.sort(key=lambda text: (-text[2].quality, text[0], text[1]))
    # One of every user, then a second; a text that two systems share counts once.
    turns: Counter[tuple[str, int]] = Counter()
    sound: dict[tuple[Context, str], tuple[int, Explanation]] = {}
    for context, _, one in texts:
        if (context, one.text) not in sound and reversed_words(one.text):
            user = (context.dataset, context.user)
            sound[context, one.text] = (turns[user], one)
            turns[user] += 1
    chosen = sorted(sound.items(), key=lambda entry: entry[1][0])[:number]
    if not chosen:
        raise UserError(
            f"no text has {CHECK_WORDS} words to make an attention check of; give --checks 0"
        )
    rows = []
    sides = rng.permutation((np.arange(len(chosen)) + rng.integers(2)) % 2 == 0)
    for place, ((context, text), (_, one)) in enumerate(chosen):
        fault, spoilt = "scrambled", reversed_words(text)
        if place % 2 and (other := other_item(one, catalogue[context.dataset], rng)):
            fault, spoilt = "other item", other
        row = _row(
            Pair(context, SOUND, fault, one, one.model_copy(update={"text": spoilt})),
            bool(sides[place]),
        )
        rows.append(
            row.model_copy(update={"kind": "check", "sound": "left" if sides[place] else "right"})
        )
    return rows


def reversed_words(text: str) -> str | None:
    """The text with its words in reverse order; None where that may still read well.

    >>> reversed_words("A fine choice for a quiet evening.")
    'evening. quiet a for choice fine A'
    """
    words = text.split()
    folded = [word.casefold() for word in words]
    if len(set(folded)) < CHECK_WORDS or folded == folded[::-1]:
        return None
    return " ".join(reversed(words))


def other_item(one: Explanation, titles: Sequence[str], rng: np.random.Generator) -> str | None:
    """The text with the recommended title replaced by that of an item the user has no part in.

    None where the text does not name its item, or no title is foreign to it.
    """
    if len(one.title) < CHECK_TITLE or one.title.casefold() not in one.text.casefold():
        return None
    known = [name.casefold() for name in (one.title, one.text, *one.history)]
    foreign = [
        title
        for title in titles
        if len(title) >= CHECK_TITLE
        and not any(title.casefold() in name or name in title.casefold() for name in known)
    ]
    if not foreign:
        return None
    title = foreign[rng.integers(len(foreign))]
    return re.sub(re.escape(one.title), lambda _: title, one.text, flags=re.IGNORECASE)


def draw_ids(number: int, rng: np.random.Generator) -> list[str]:
    """Different ids that tell nothing and that no spreadsheet takes for a number or a date."""
    ids: dict[str, None] = {}
    while len(ids) < number:
        letters = rng.integers(len(ID_LETTERS), size=ID_LENGTH)
        ids["".join(ID_LETTERS[letter] for letter in letters)] = None
    return list(ids)


def _row(pair: Pair, on_left: bool) -> Row:
    """The row of a pair, still without an id of its own."""
    row = Row(
        id="-",
        kind="pair",
        **pair.context._asdict(),
        title=pair.first.title,
        categories=pair.first.categories,
        history=pair.first.history,
        left=pair.a,
        right=pair.b,
        left_text=pair.first.text,
        right_text=pair.second.text,
    )
    return row if on_left else _swapped(row)


def _swapped(row: Row) -> Row:
    return row.model_copy(
        update={
            "left": row.right,
            "right": row.left,
            "left_text": row.right_text,
            "right_text": row.left_text,
        }
    )


def _identity(folder: Path) -> Identity:
    path = folder / "evaluation.json"
    try:
        return Identity.model_validate(read_json(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the folder of an evaluated run") from None
    except ValidationError as error:
        raise UserError(f"{path}: {fault(error)}; evaluate the run again") from None


def _check_company(
    folder: Path, name: Identity, names: Sequence[Identity], compare: Compare
) -> None:
    """Refuse a run that the comparison has no use for, rather than leave it out in silence."""
    others = [one for one in names if one.dataset == name.dataset]
    if compare == "steps":
        if any(one.variant != name.variant for one in others):
            raise UserError(
                f"{folder}: --compare steps takes runs of one variant for each dataset; leave out "
                "the others"
            )
        if name.variant == BEFORE:
            raise UserError(f"{folder}: a variant cannot be called {BEFORE!r} here; rename it")
    elif not any(one.seed == name.seed and one.variant != name.variant for one in others):
        raise UserError(
            f"{folder}: no other variant of dataset {name.dataset!r} and seed {name.seed} to compare "
            "with; add one, leave this out, or give --compare steps"
        )


def _explanations(path: Path) -> list[Explanation]:
    try:
        rows = read_jsonl(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with `rl evaluate`") from None
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(Explanation.model_validate(row))
        except ValidationError as error:
            raise UserError(
                f"{path}, line {number}: {fault(error)}; make the file again with `rl evaluate`"
            ) from None
    return found


def _told(row: Explanation) -> tuple[str, list[str], list[str]]:
    return row.title, row.categories, row.history
