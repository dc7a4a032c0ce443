"""Templated explanations: the supervised text of the embedded LM.

In: what the metadata says about one item and about the user's history. Out: one or two whole
sentences. A sentence names nothing but its fields, and a field is filled from metadata only, so
every text is supported. Styles run from sentences that name nothing to sentences that name the
item, a title of the history and the category both have, each with its weight.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.prompts import Item, short_title

CLOSING = "closing"
FIELD = re.compile(r"\{(\w+)\}")
FIELDS = frozenset({"title", "category", "liked", "shared"})


@dataclass(frozen=True)
class Style:
    """Sentences of one kind and their share of all texts."""

    weight: float
    sentences: tuple[str, ...]


def load_styles(path: Path) -> dict[str, Style]:
    """Read explanations.yaml: `closing` is the second sentence, every other key a style.

    Raises:
        UserError: a missing file, key, weight or full stop, or a field that nothing fills.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such templates; restore the file from the repository")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        styles = {
            name: Style(float(entry["weight"]), tuple(map(str, entry["sentences"])))
            for name, entry in document.items()
        }
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: every key needs a `weight` and a list of `sentences` ({error!r})"
        ) from error
    for name, style in styles.items():
        if style.weight < 0 or not style.sentences:
            raise UserError(f"{path}, {name}: weight must be at least 0 and sentences not empty")
        for sentence in style.sentences:
            unknown = fields(sentence) - (frozenset() if name == CLOSING else FIELDS)
            if unknown:
                raise UserError(f"{path}, {name}: nothing fills {sorted(unknown)} in {sentence!r}")
            if not sentence.endswith("."):
                raise UserError(f"{path}, {name}: {sentence!r} must end with a full stop")
    if CLOSING not in styles:
        raise UserError(f"{path}: there is no key `{CLOSING}`; add it (its weight may be 0)")
    plain = [s for n, s in styles.items() if n != CLOSING and not all(map(fields, s.sentences))]
    if not any(style.weight for style in plain):
        raise UserError(
            f"{path}: no style has a sentence without fields, for items of which nothing is known"
        )
    return styles


def fields(sentence: str) -> frozenset[str]:
    """Names of the fields of a sentence.

    >>> sorted(fields("Because you liked {liked}, try {title}."))
    ['liked', 'title']
    """
    return frozenset(FIELD.findall(sentence))


def facts(item: Item, history: Sequence[Item]) -> list[dict[str, str]]:
    """Every way to fill the fields: one of the item's categories with one title of the history.

    Returns:
        Mappings from field to value. `title` is in all of them; `category` and `liked` where
        the item has a category or the user a history; `shared` where the liked title has it.
    """
    title = short_title(item)
    found = []
    for category in item.categories or (None,):
        for other in history or (None,):
            values = {
                "title": title,
                "category": category,
                "liked": other and short_title(other),
                "shared": category if other and category in other.categories else None,
            }
            found.append({name: value for name, value in values.items() if value})
    return found


def write(
    styles: Mapping[str, Style], item: Item, history: Sequence[Item], rng: random.Random
) -> tuple[str, str]:
    """Write one explanation.

    Args:
        styles: see `load_styles`.
        item: the recommended item.
        history: items named in the prompt.
        rng: source of every choice.

    Returns:
        The style drawn, and the text: one or two sentences that end with a full stop.
    """
    ways = facts(item, history)
    choices = {
        name: pairs
        for name, style in styles.items()
        if name != CLOSING
        and (
            pairs := [
                (sentence, values)
                for sentence in style.sentences
                for values in ways
                if fields(sentence) <= values.keys()
            ]
        )
    }
    weights = [styles[name].weight for name in choices]
    name = rng.choices(list(choices), weights)[0]
    sentence, values = rng.choice(choices[name])
    text = FIELD.sub(lambda match: values[match[1]], sentence)
    if rng.random() < styles[CLOSING].weight:
        text = f"{text} {rng.choice(styles[CLOSING].sentences)}"
    return name, text
