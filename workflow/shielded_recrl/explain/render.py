"""Answers as text for a terminal and as a JSON document; pure functions.

What a text holds beyond printable characters, such as an escape sequence in a title, is shown as
a question mark in a diamond and never reaches the terminal.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby, zip_longest
from typing import Any, NamedTuple

from shielded_recrl.explain.answers import Answer, Claim, Recommendation, Thing, moves

SCHEMA = 1
SUPPORTED, UNSUPPORTED = "✓", "✗"
# Longer titles are cut in a terminal.
TITLE_CELLS = 60
GAP = "  │  "
INDENT = "   "
STYLES = {"bold": "1", "dim": "2", "supported": "32", "unsupported": "31", "changed": "33"}
ROLES = {
    "train": "a training user",
    "protected": "a protected user",
    "heldout": "a held-out user",
    "none": "a user without test items",
}


class Word(NamedTuple):
    """A printable word and the name of its style; a glued word has no space before it."""

    text: str
    style: str = ""
    glued: bool = False


Line = list[Word]


def terminal(answer: Answer, width: int = 100, colour: bool = False) -> str:
    """One answer as text.

    Args:
        answer: what is shown.
        width: of the lines, in cells.
        colour: whether to write escape sequences for colours.
    """
    lines = [*_head(answer, width), *wrap(_run(answer), width), []]
    for one in answer.recommendations:
        title = [Word(f"{one.position:>2}."), *_named(one.thing, "bold")]
        lines += wrap(title, width)
        lines += _indented(_score(one), width)
        lines += [*_indented(explanation(one), width), []]
    if not answer.recommendations:
        lines += [*wrap(_words("Nothing is left to recommend: they had every item."), width), []]
    return _painted([*lines, *_legend([answer], width)], colour)


def comparison(left: Answer, right: Answer, width: int = 100, colour: bool = False) -> str:
    """Two answers for one user side by side, changed positions marked on the right.

    Args:
        left: what `right` is compared with.
        right: of the same user.
        width: of the lines, in cells.
        colour: whether to write escape sequences for colours.
    """
    column = max(24, (width - len(GAP)) // 2)
    rows = [(wrap(_run(left), column), wrap(_run(right), column))]
    changes = moves(left, right)
    pairs = zip_longest(left.recommendations, right.recommendations)
    for place, (one, other) in enumerate(pairs):
        rows.append(([[]], [[]]))
        change = [mark(changes[place])] if other else []
        rows.append((_card(one, column), _card(other, column, *change)))
    lines = _head(left, width)
    for first, second in rows:
        lines += [_beside(a, b, column) for a, b in zip_longest(first, second, fillvalue=[])]
    return _painted([*lines, [], *_legend([left, right], width)], colour)


def mark(change: int | None) -> Word:
    """How far an item stands from its place in the other list."""
    if change is None:
        return Word("new", "changed")
    if change == 0:
        return Word("=", "dim")
    return Word(f"{'▲' if change > 0 else '▼'}{abs(change)}", "changed")


def document(answers: Sequence[Answer]) -> dict[str, Any]:
    """One or two answers for one user as a JSON value; docs/explain.md describes it."""
    first = answers[0]
    return {
        "schema": SCHEMA,
        "dataset": {
            "name": first.dataset,
            "synthetic": first.synthetic,
            "sequential": first.sequential,
        },
        "user": {
            "user": first.person.user,
            "source_id": first.person.source_id,
            "role": first.person.role,
        },
        "history": [{**_thing(past.thing), "named": past.named} for past in first.history],
        "runs": [
            {
                "variant": answer.variant,
                "seed": answer.seed,
                "shield": answer.shield,
                "gamma": answer.gamma,
                "sampling": {"temperature": answer.temperature, "top_p": answer.top_p},
                "recommendations": [
                    {
                        "position": one.position,
                        "moved": moved,
                        **_thing(one.thing),
                        "score": one.score,
                        "ranker_score": one.ranker_score,
                        "lm_score": one.lm_score,
                        "in_test": one.in_test,
                        "explanation": one.explanation,
                        "ended": one.ended,
                        "claims": [asdict(claim) for claim in one.claims],
                    }
                    for one, moved in zip(answer.recommendations, moves(first, answer), strict=True)
                ],
            }
            for answer in answers
        ],
    }


def as_json(answers: Sequence[Answer]) -> str:
    """`document` as text."""
    return json.dumps(document(answers), indent=2, allow_nan=False)


def weights(answers: Sequence[Answer]) -> str:
    """The weight of the language model in the ranking, of each run where they differ."""
    return " and ".join(dict.fromkeys(f"{answer.gamma:.3g}" for answer in answers))


def explanation(one: Recommendation) -> Line:
    """The words of an explanation, each claim followed by its sign."""
    line: Line = []
    joined = False
    for text, claim in one.pieces():
        style = _style(claim)
        for place, word in enumerate(text.split()):
            glued = place == 0 and joined and not text[0].isspace()
            line.append(Word(plain(word), style, glued))
        if claim:
            line.append(Word(SUPPORTED if claim.supported else UNSUPPORTED, style, glued=True))
        joined = not text[-1].isspace()
    if not line:
        return _words("(an empty text)", "dim")
    return line if one.ended else [*line, *_words("(cut off)", "dim")]


def wrap(words: Iterable[Word], width: int) -> list[Line]:
    """Break words into lines of at most `width` cells; a longer word is broken itself.

    Glued words stay on one line as long as they fit on a line of their own.
    """
    lines: list[Line] = [[]]
    room = width
    for group in _groups(words):
        size = sum(cells(word.text) for word in group)
        space = 1 if lines[-1] else 0
        if size + space <= room:
            lines[-1] += [group[0]._replace(glued=not space), *group[1:]]
            room -= size + space
            continue
        if lines[-1]:
            lines.append([])
        room = width
        for word in group:
            text = word.text
            while cells(text) > room:
                # A whole line has room for one character, however wide.
                head = _beginning(text, room) or text[: room == width]
                lines[-1] += [Word(head, word.style, glued=True)] * bool(head)
                lines.append([])
                text, room = text[len(head) :], width
            lines[-1].append(Word(text, word.style, glued=True))
            room -= cells(text)
    return lines


def plain(text: str) -> str:
    """The text on one line, with nothing in it that a terminal could obey."""
    return "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "�" for letter in text
    )


def cells(text: str) -> int:
    """Columns of a terminal that a text takes.

    >>> cells("ab"), cells("龍"), cells("e\u0301")
    (2, 2, 1)
    """
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _beginning(text: str, width: int) -> str:
    """The longest beginning that fits."""
    end = 0
    while end < len(text) and cells(text[: end + 1]) <= width:
        end += 1
    return text[:end]


def _groups(words: Iterable[Word]) -> list[Line]:
    groups: list[Line] = []
    for word in words:
        if word.glued and groups:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _style(claim: Claim | None) -> str:
    if claim is None:
        return ""
    return "supported" if claim.supported else "unsupported"


def _words(text: str, style: str = "") -> Line:
    return [Word(word, style) for word in plain(text).split()]


def _title(thing: Thing) -> str:
    title = " ".join(plain(thing.title).split()) or "(untitled)"
    return title if cells(title) <= TITLE_CELLS else _beginning(title, TITLE_CELLS - 1) + "…"


def _head(answer: Answer, width: int) -> list[Line]:
    """Who is served, and the history that the language model reads."""
    person = answer.person
    notes = ["synthetic data"] * answer.synthetic + ["no order"] * (not answer.sequential)
    who = [
        *_words(f"User {person.user}", "bold"),
        *_words(f"(source id {person.source_id}), {ROLES[person.role]} of {answer.dataset}"),
        *_words(f"({', '.join(notes)})" if notes else "", "dim"),
    ]
    earlier = sum(not past.named for past in answer.history)
    order = "oldest first" if answer.sequential else "in no order"
    more = f"; {earlier} more before these" if earlier else ""
    title = [*_words("History", "bold"), *_words(f"as the prompt names it, {order}{more}", "dim")]
    lines = [*wrap(who, width), [], *wrap(title, width)]
    for past in answer.history:
        if past.named:
            lines += _indented(_named(past.thing), width)
    return [*lines, []]


def _named(thing: Thing, style: str = "") -> Line:
    categories = f"({', '.join(thing.categories)})" if thing.categories else ""
    return [*_words(_title(thing), style), *_words(categories, "dim")]


def _run(answer: Answer) -> Line:
    about = f"seed {answer.seed}, shield {answer.shield}"
    return [*_words(f"{answer.variant},", "bold"), *_words(about, "dim")]


def _score(one: Recommendation) -> Line:
    sign = "-" if one.lm_score < 0 else "+"
    parts = f"= {one.ranker_score:.3f} ranker {sign} {abs(one.lm_score):.3f} language model"
    found = _words("· in the test split", "dim") if one.in_test else []
    return [Word(f"{one.score:.3f}"), *_words(parts, "dim"), *found]


def _card(one: Recommendation | None, width: int, *marks: Word) -> list[Line]:
    """A recommendation in a column; nothing where a list is shorter than the other."""
    if one is None:
        return [[]]
    head = [Word(f"{one.position}."), *_words(_title(one.thing), "bold")]
    score = [Word(f"{one.score:.3f}"), *marks, *_words("· in the test split" * one.in_test, "dim")]
    return [*wrap(head, width), *wrap(score, width), *wrap(explanation(one), width)]


def _legend(answers: Sequence[Answer], width: int) -> list[Line]:
    first = answers[0]
    lines = [
        f"{SUPPORTED} a claim that the metadata of item and history supports, "
        f"{UNSUPPORTED} one that it does not; other words are not checked.",
        f"Score = ranker + language model, which has weight {weights(answers)}. Texts are sampled at "
        f"temperature {first.temperature:g}, top_p {first.top_p:g}.",
    ]
    if len(answers) > 1:
        same = not any(moves(*answers)) and None not in moves(*answers)
        lines.insert(0, "The two lists are the same." if same else "The two lists differ.")
        lines.insert(1, "= same place; ▲ ▼ places gained or lost; new: not in the other list.")
    return [part for line in lines for part in wrap(_words(line, "dim"), width)]


def _indented(line: Line, width: int) -> list[Line]:
    """A wrapped line under the title of a numbered item."""
    return [[Word(INDENT, glued=True), *part] for part in wrap(line, width - len(INDENT) - 1)]


def _beside(left: Line, right: Line, column: int) -> Line:
    """Two lines in columns; the gap between them is drawn."""
    size = sum(cells(word.text) + (not word.glued and i > 0) for i, word in enumerate(left))
    blank = Word(" " * max(0, column - size) + GAP, "dim", glued=True)
    return [
        *left,
        blank,
        *(word._replace(glued=i == 0 or word.glued) for i, word in enumerate(right)),
    ]


def _painted(lines: Sequence[Line], colour: bool) -> str:
    return "\n".join("".join(_spans(line, colour)).rstrip() for line in lines)


def _spans(line: Line, colour: bool) -> Iterator[str]:
    """The words of a line; neighbours of one style share their escape sequences."""
    first = True
    for style, words in groupby(line, key=lambda word: word.style):
        text = ""
        for word in words:
            gap = "" if word.glued or first else " "
            if text:
                text += gap + word.text
            else:
                yield gap
                text = word.text
            first = False
        code = STYLES.get(style) if colour else None
        yield f"\x1b[{code}m{text}\x1b[0m" if code else text


def _thing(thing: Thing) -> dict[str, Any]:
    return {
        "item": thing.item,
        "source_id": thing.source_id,
        "title": thing.title,
        "categories": list(thing.categories),
    }
