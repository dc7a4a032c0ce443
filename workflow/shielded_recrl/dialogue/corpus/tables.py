"""Sound dialogues to tables.

In: what was said, by split, and the items of the films. Out: the tables that
`shielded_recrl.dialogue.corpus.dialogues` reads, and their sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import polars as pl

from shielded_recrl.dialogue.corpus.dialogues import DISLIKED, LIKED, NOT_SAID, SCHEMAS, SPLITS
from shielded_recrl.dialogue.corpus.films import Catalogue, Genres
from shielded_recrl.dialogue.corpus.redial import Answer, Conversation


def tables(
    kept: Mapping[str, Sequence[Conversation]],
    catalogue: Catalogue,
    genres: Genres,
) -> dict[str, pl.DataFrame]:
    """The tables, by name.

    Args:
        kept: split -> its dialogues.
        catalogue: items of all films they name.
        genres: their categories.
    """
    rows: dict[str, list[tuple]] = {name: [] for name in SCHEMAS if name != "items"}
    mentions: Counter[int] = Counter()
    for split in SPLITS:
        for conversation in kept[split]:
            dialogue = len(rows["dialogues"])
            rows["dialogues"].append((dialogue, conversation.id, split))
            named: set[int] = set()
            for number, turn in enumerate(conversation.turns):
                rows["turns"].append((dialogue, number, turn.role, turn.text))
                for position, movie in enumerate(turn.movies):
                    item = catalogue.item[movie]
                    rows["mentions"].append((dialogue, number, position, item, item in named))
                    named.add(item)
                    mentions[item] += split == "train"
            answers = _answers(conversation, catalogue)
            rows["feedback"].extend(
                (dialogue, item, bool(answer.suggested), answer.seen, answer.liked)
                for item, answer in sorted(answers.items())
            )
    frames = {
        name: pl.DataFrame(found, schema=SCHEMAS[name], orient="row")
        for name, found in rows.items()
    }
    return frames | {"items": catalogue.table(genres, mentions)}


def _answers(conversation: Conversation, catalogue: Catalogue) -> dict[int, Answer]:
    """By item; of several ids of one film the first that says whether it was liked."""
    answers: dict[int, Answer] = {}
    for movie, answer in conversation.answers.items():
        item = catalogue.item[movie]
        if item not in answers or answers[item].liked == NOT_SAID:
            answers[item] = answer
    return answers


def sizes(found: Mapping[str, pl.DataFrame]) -> dict[str, object]:
    """What there is to say about the tables: films, and by split what was said."""
    splits = {}
    for split in SPLITS:
        ours = found["dialogues"].filter(pl.col("split") == split).select("dialogue")
        turns, mentions, feedback = (
            found[name].join(ours, on="dialogue", how="semi")
            for name in ("turns", "mentions", "feedback")
        )
        splits[split] = {
            "dialogues": len(ours),
            "turns": len(turns),
            "mentions": len(mentions),
            "repeats": int(mentions["is_repeat"].sum()),
            "liked": int((feedback["liked"] == LIKED).sum()),
            "disliked": int((feedback["liked"] == DISLIKED).sum()),
            "not_said": int((feedback["liked"] == NOT_SAID).sum()),
        }
    items = found["items"]
    return {
        "splits": splits,
        "items": len(items),
        "movies": int(items["movies"].list.len().sum()),
        "dated": len(items) - items["year"].null_count(),
        "with_categories": int((items["categories"].list.len() > 0).sum()),
        "in_train": int((items["mentions"] > 0).sum()),
    }
