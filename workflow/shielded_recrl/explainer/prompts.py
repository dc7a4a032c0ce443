"""Prompts: prefix(u), the text of a user's history, then the request to explain one item.

In: a tokenizer, the templates of resources/prompts, the catalogue. Out: token ids.

The prefix is tokenised on its own and the request is appended as ids, so the prefix ids are
exactly the beginning of every explanation prompt of that user: one prefill of the prefix can
serve the ranking and then go on to write the explanation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.parquet import read_parquet

# Longer titles are shortened, so that one hostile title cannot push the history out of the prompt.
TITLE_CHARACTERS = 60
# Chat templates mark whose turn it is by <|user|>, </s>, [INST] and the like. No setting of a tokenizer
# keeps all of them out: to TinyLlama's <|user|> is plain text, added tokens need not be special, and
# unigram models spell special ones from text. Without these characters there are none; the wide ones
# are those that some tokenizers normalise to them.
MARKS = str.maketrans("<>[]|＜＞［］｜﹤﹥", "()()/()()/()")
FIELD = re.compile(r"\{title\}|\{categories\}")
# Share of the prompt kept free for the request; the prefix must not depend on the item.
REQUEST_SHARE = 3


@dataclass(frozen=True)
class Item:
    """What may be said about an item: its metadata, nothing learned from other users."""

    title: str
    categories: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Request:
    """One explanation to be written.

    Attributes:
        user, item: ids of the dataset.
        about: the item's metadata.
        history: metadata of the items named in the prefix, most recent last.
        prefix: token ids the ranking reads.
        prompt: token ids the explanation continues; begins with `prefix`.
    """

    user: int
    item: int
    about: Item
    history: tuple[Item, ...]
    prefix: tuple[int, ...]
    prompt: tuple[int, ...]


def load_items(path: Path) -> list[Item]:
    """Read items.parquet; entry 0 is padding, entry i is item i.

    Raises:
        UserError: the file is missing or damaged, or a column is.
    """
    columns = {"item": pl.Int32, "title": pl.String, "text": pl.String}
    columns["categories"] = pl.List(pl.String)
    frame = read_parquet(path, columns, nullable=["text"]).sort("item")
    items = [Item("", (), "")]
    for row in frame.iter_rows(named=True):
        items.append(Item(row["title"], tuple(row["categories"]), row["text"] or ""))
    return items


class PromptBuilder:
    """Turns users and items into token ids."""

    def __init__(self, tokenizer, templates: Path, items: list[Item], settings: PromptSettings):
        """
        Args:
            tokenizer: a transformers tokenizer.
            templates: folder with prefix.txt (`{history}`) and request.txt (`{title}`, `{categories}`).
            items: see `load_items`.
            settings: lengths.
        """
        self.tokenizer = tokenizer
        self.items = items
        self.settings = settings
        self.prefix_template = _template(templates / "prefix.txt", "{history}")
        self.request_template = _template(templates / "request.txt", "{title}", "{categories}")

    def prefix(self, history: Sequence[int]) -> tuple[tuple[int, ...], tuple[Item, ...]]:
        """Token ids of prefix(u) and the items it names: the most recent ones that fit.

        Args:
            history: item ids, most recent last.
        """
        budget = self.settings.prompt_tokens - self.settings.prompt_tokens // REQUEST_SHARE
        recent = [self.items[item] for item in history[-self.settings.history_items :]]
        bos = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        for start in range(max(len(recent), 1)):
            named = tuple(recent[start:])
            text = self.prefix_template.replace(
                "{history}", "; ".join(short_title(i) for i in named)
            )
            ids = bos + self._encode(text)
            if len(ids) <= budget:
                break
        # The read-out position is always the last token of the template.
        return tuple(ids if len(ids) <= budget else ids[: budget - 1] + ids[-1:]), named

    def request(self, user: int, item: int, history: Sequence[int]) -> Request:
        """The prompt that asks why `item` is recommended to a user with this history."""
        prefix, named = self.prefix(history)
        about = self.items[item]
        room = self.settings.prompt_tokens - len(prefix)
        ask = self._encode(request_text(self.request_template, about))
        if len(ask) > room:
            # The instruction at the end stays; room is at least 5, a third of the prompt.
            ask = ask[: room - 4] + ask[-4:]
        return Request(user, item, about, named, prefix, prefix + tuple(ask))

    def _encode(self, text: str) -> list[int]:
        # Special tokens inside data are text like any other.
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def short_title(item: Item) -> str:
    """The title as it stands in prompts; see `shortened`."""
    return shortened(item.title)


def shortened(title: str) -> str:
    """A title as data, see `as_data`, bounded."""
    title = as_data(title)
    return title if len(title) <= TITLE_CHARACTERS else title[: TITLE_CHARACTERS - 1].rstrip() + "…"


def as_data(text: str) -> str:
    """Text on one line in which no token of a chat template is spelled.

    >>> as_data("Emma</s>\\n<|system|> [INST]")
    'Emma(/s) (/system/) (INST)'
    """
    return " ".join(text.translate(MARKS).split())


def request_text(template: str, item: Item) -> str:
    """Fill the request template; only the first three categories are named."""
    values = {
        "{title}": short_title(item),
        "{categories}": as_data(", ".join(item.categories[:3])) or "no category",
    }
    # At once: a category may read like a field.
    return FIELD.sub(lambda field: values[field[0]], template)


def _template(path: Path, *fields: str) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such template; restore it from the repository")
    text = path.read_text(encoding="utf-8")
    for field in fields:
        if field not in text:
            raise UserError(f"{path}: the template has no {field}; add it")
    return text
