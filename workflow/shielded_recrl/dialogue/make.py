"""The embedded raw files: generated dialogues in exactly the raw formats of ReDial and GoEmotions.

In: a seed and sizes. Out, in one folder:

    train_data.jsonl, test_data.jsonl   dialogues of ReDial
    movies_with_mentions.csv            movieId, movieName, nbMentions
    movies.csv                          movieId, title, genres of MovieLens
    goemotions/{train,dev,test}.tsv     text, numbers of labels, id; no header

Equal seeds and sizes give equal bytes. What is latent in the world is described in
`shielded_recrl.dialogue.corpus.world`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from shielded_recrl.data.latent import Item
from shielded_recrl.dialogue.corpus.dialogues import NOT_SAID, ROLES
from shielded_recrl.dialogue.corpus.world import Opinion, Talk, World, draw_comments, draw_world
from shielded_recrl.dialogue.settings import DialogueWorldSettings
from shielded_recrl.files import atomic

TEST_SHARE = 0.2
# Of comments, as in GoEmotions: the rest trains.
COMMENT_SHARES = {"dev": 0.1, "test": 0.1}
LETTERS = np.array(list("0123456789abcdefghijklmnopqrstuvwxyz"))
DEFAULTS = DialogueWorldSettings()


def main(
    *,
    out: Path,
    seed: int = 42,
    settings: Annotated[DialogueWorldSettings, tyro.conf.arg(name="")] = DEFAULTS,
) -> None:
    """Write generated dialogues and comments in the raw formats of ReDial and GoEmotions.

    Args:
        out: folder for the raw files; it is replaced.
        seed: equal seeds give equal bytes.
        settings: sizes of the world.
    """
    rng = np.random.default_rng([seed, 0])
    world = draw_world(settings, rng)
    files = render_dialogues(world, rng) | render_comments(
        draw_comments(settings.comments, np.random.default_rng([seed, 1])),
        np.random.default_rng([seed, 2]),
    )
    with atomic(out) as folder:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    print(
        f"{out}: {len(world.talks)} dialogues about {len(world.films)} films, "
        f"{settings.comments} comments; next: python -m shielded_recrl.dialogue prepare"
    )


def render_dialogues(world: World, rng: np.random.Generator) -> dict[str, str]:
    """The files of ReDial and the categories of MovieLens, by name."""
    names = [_name(film, rng) for film in world.films]
    # One in twenty films has two ids, as in the real file.
    owners = [*range(len(names)), *np.flatnonzero(rng.random(len(names)) < 0.05).tolist()]
    numbers = 75_000 + rng.choice(130_000, len(owners), replace=False)
    ids: list[list[int]] = [[] for _ in names]
    for film, number in zip(owners, numbers.tolist(), strict=True):
        ids[film].append(number)
    rows, mentions, message = [], dict.fromkeys(numbers.tolist(), 0), 10_000
    for talk in world.talks:
        chosen = [choices[rng.integers(len(choices))] for choices in ids]
        row = _dialogue(talk, chosen, names, message, rng)
        row["conversationId"] = str(20_001 + len(rows))
        message += len(talk.messages)
        for number in map(int, row["movieMentions"]):
            mentions[number] += 1
        rows.append(row)
    tested = int(TEST_SHARE * len(rows))
    spelled = {number: names[film] for film, choices in enumerate(ids) for number in choices}
    movies = ((number, spelled[number], mentions[number]) for number in sorted(spelled))
    genres = (
        (number, _movielens(film), "|".join(sorted(film.categories)))
        # MovieLens does not have them all.
        for number, film in enumerate(world.films, start=1)
        if rng.random() < 0.9
    )
    return {
        "train_data.jsonl": _lines(json.dumps(row) for row in rows[tested:]),
        "test_data.jsonl": _lines(json.dumps(row) for row in rows[:tested]),
        "movies_with_mentions.csv": _csv(("movieId", "movieName", "nbMentions"), movies),
        "movies.csv": _csv(("movieId", "title", "genres"), genres),
    }


def _dialogue(
    talk: Talk, ids: Sequence[int], names: Sequence[str], message: int, rng: np.random.Generator
) -> dict[str, Any]:
    """A dialogue as a row of ReDial.

    Args:
        talk: what was said.
        ids: raw id of each film.
        names: name of each film.
        message: number of the first message.
        rng: draws workers, times and gaps of the questionnaires.
    """
    workers = dict(zip(ROLES, map(int, rng.choice(1000, 2, replace=False)), strict=True))
    offsets = np.cumsum([0, *rng.integers(2, 45, len(talk.messages) - 1)])
    films = list(talk.opinions)
    # The recommender's form knows less; now and then one of the two was not filled in.
    gaps = {film for film in films if rng.random() < 0.08}
    told = {
        film: Opinion(opinion.suggested, 2, NOT_SAID) if film in gaps else opinion
        for film, opinion in talk.opinions.items()
    }
    forms = {"initiatorQuestions": talk.opinions, "respondentQuestions": told}
    empty = next((name for name in forms if rng.random() < 0.03), None)
    return {
        "movieMentions": {str(ids[film]): names[film] for film in films},
        **{
            name: []
            if name == empty
            else {str(ids[film]): _answer(opinion) for film, opinion in form.items()}
            for name, form in forms.items()
        },
        "messages": [
            {
                "timeOffset": int(offset),
                "text": re.sub("@([0-9]+)", lambda film: f"@{ids[int(film[1])]}", text),
                "senderWorkerId": workers[role],
                "messageId": message + place,
            }
            for place, ((role, text), offset) in enumerate(zip(talk.messages, offsets, strict=True))
        ],
        "initiatorWorkerId": workers[ROLES[0]],
        "respondentWorkerId": workers[ROLES[1]],
    }


def _answer(opinion: Opinion) -> dict[str, int]:
    return {"suggested": opinion.suggested, "seen": opinion.seen, "liked": opinion.liked}


def render_comments(
    comments: Sequence[tuple[str, tuple[int, ...]]], rng: np.random.Generator
) -> dict[str, str]:
    """The files of GoEmotions by name."""
    codes: dict[str, None] = {}
    while len(codes) < len(comments):
        codes["e" + "".join(rng.choice(LETTERS, 6))] = None
    rows = [
        f"{text}\t{','.join(map(str, labels))}\t{code}"
        for (text, labels), code in zip(comments, codes, strict=True)
    ]
    files, start = {}, 0
    for part, share in COMMENT_SHARES.items():
        end = start + int(share * len(rows))
        files[f"goemotions/{part}.tsv"] = _lines(rows[start:end])
        start = end
    return {"goemotions/train.tsv": _lines(rows[start:]), **files}


def _name(film: Item, rng: np.random.Generator) -> str:
    """As ReDial has it: often two blanks before the year, now and then no year."""
    blanks = "  " if rng.random() < 0.5 else " "
    return f"{film.title} " if rng.random() < 0.05 else f"{film.title}{blanks}({film.year})"


def _movielens(film: Item) -> str:
    title = film.title
    if title.startswith("The "):
        title = f"{title.removeprefix('The ')}, The"
    return f"{title} ({film.year})"


def _csv(header: Sequence[str], rows: Iterable[tuple]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
