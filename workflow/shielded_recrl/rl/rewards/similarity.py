"""Relevance by embeddings: how near a text lies to the item and to the user's history.

In: the frozen input embeddings of the base LM and the metadata of the catalogue. Out: cosines.
There is no model of its own. A text is a SIF-weighted mean of token embeddings (Arora, Liang, Ma
2017, "A simple but tough-to-beat baseline for sentence embeddings", algorithm 1):

    v(s) = mean_t a / (a + p(t)) E[t],    v(s) <- v(s) - u u^T v(s)

with p the frequency of a token in the catalogue's metadata, and u the first right singular vector
of its items. Only content words of the catalogue are read: a function word, a word the catalogue
never uses, another script say nothing of an item, and metadata is too short to tell by p how common
they are in prose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.prompts import Item, Request, short_title
from shielded_recrl.rl.rewards.reading import FUNCTION_WORDS
from shielded_recrl.rl.text import WORD, words

# a of the paper, within the range it recommends.
SIF = 1e-3
# Of descriptions, which may be pages long; the first lines say what an item is.
TEXT_CHARACTERS = 200
# Items the common direction is taken from, evenly spaced over the catalogue.
SAMPLE = 1000
# Numbers kept of item vectors: 64 MB, whatever the width.
CACHE = 2**24


class Similarity:
    """Cosines of texts with items and histories."""

    def __init__(self, items: Sequence[Item], tokenizer, embeddings: Tensor):
        """
        Args:
            items: the catalogue.
            tokenizer: of the base LM.
            embeddings: frozen token embeddings [v, d]; kept as float32 on the CPU.

        Raises:
            UserError: the tokenizer has tokens without an embedding.
        """
        self.tokenizer = tokenizer
        self.embeddings = embeddings.detach().float().cpu()
        self._items = dict.fromkeys(items)
        self.words = {word for item in self._items for word in words(metadata(item))}
        self.words -= FUNCTION_WORDS
        rows = self._encode([metadata(item) for item in self._items])
        counts = torch.bincount(_flat(rows), minlength=len(embeddings)).double()
        if len(counts) > len(embeddings):
            raise UserError(
                f"the tokenizer writes token {len(counts) - 1}, the embeddings have "
                f"{len(embeddings)} rows; give the tokenizer and embeddings of one model"
            )
        frequency = counts / counts.sum().clamp(min=1)
        self.weights = torch.where(counts > 0, SIF / (SIF + frequency), 0.0).float()
        self.common = torch.zeros(embeddings.shape[1])
        sample = self._means(rows[:: -(-len(rows) // SAMPLE) or 1])
        if len(sample) > 1:
            self.common = torch.linalg.svd(sample, full_matrices=False).Vh[0]
        # Tokens of every item, so that no step tokenises metadata again; a few bytes each.
        self._items = dict(zip(self._items, (np.array(row, np.int32) for row in rows), strict=True))
        self._cache: dict[Item, Tensor] = {}

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [n, d] of texts; 0 for a text without a content word of the catalogue."""
        return self._units(self._encode(texts))

    def item_vectors(self, items: Iterable[Item]) -> dict[Item, Tensor]:
        """Unit vector [d] of each item's metadata."""
        wanted = dict.fromkeys(items)
        if len(self._cache) * len(self.common) > CACHE:
            self._cache.clear()
        missing = [item for item in wanted if item not in self._cache]
        strangers = [item for item in missing if item not in self._items]
        rows = dict(zip(strangers, self._encode(list(map(metadata, strangers))), strict=True))
        units = self._units([rows[item] if item in rows else self._items[item] for item in missing])
        self._cache.update(zip(missing, units, strict=True))
        return {item: self._cache[item] for item in wanted}

    def __call__(self, texts: Sequence[str], requests: Sequence[Request]) -> Tensor:
        """Similarity [n] in [0, 1]: mean of the text's cosines with item and history, each from 0.

        The history's vector is the sum of its items' unit vectors. Without a history the item
        counts alone.
        """
        if not len(texts):
            return torch.zeros(0)
        known = self.item_vectors(
            i for request in requests for i in (request.about, *request.history)
        )
        items = torch.stack([known[request.about] for request in requests])
        pasts = torch.stack(
            [
                torch.stack([known[item] for item in request.history or (request.about,)]).sum(
                    dim=0
                )
                for request in requests
            ]
        )
        vectors = self.vectors(texts)
        to_item = (vectors * items).sum(dim=1).clamp(0, 1)
        to_past = (vectors * normalize(pasts, dim=1)).sum(dim=1).clamp(0, 1)
        return (to_item + to_past) / 2

    def _content(self, text: str) -> str:
        """The content words of a text, as they are written."""
        return " ".join(word for word in WORD.findall(text) if word.lower() in self.words)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not len(texts):
            return []
        return self.tokenizer(
            list(map(self._content, texts)),
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]

    def _units(self, rows: Sequence[Sequence[int]]) -> Tensor:
        # In double, and row by row: a matrix product would round by the rows it is made with, and a
        # resumed run, whose cache is empty, makes it with others.
        means, common = self._means(rows).double(), self.common.double()
        rest = means - (means * common).sum(dim=1, keepdim=True) * common
        # What is left of a text along the common direction alone is rounding, not meaning.
        empty = rest.norm(dim=1) <= 1e-5 * means.norm(dim=1)
        return normalize(rest, dim=1).masked_fill(empty[:, None], 0.0).float()

    def _means(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """SIF-weighted means [n, d] of token embeddings; 0 for a row without tokens."""
        tokens = _flat(rows)
        sizes = torch.tensor([len(row) for row in rows], dtype=torch.long)
        weights = self.weights[tokens]
        sums = embedding_bag(
            tokens,
            self.embeddings,
            sizes.cumsum(0) - sizes,
            mode="sum",
            per_sample_weights=weights,
        )
        owner = torch.repeat_interleave(sizes)
        used = torch.bincount(owner[weights > 0], minlength=len(rows))
        return sums / used.clamp(min=1)[:, None]


def metadata(item: Item) -> str:
    """What may be said about an item, as one text."""
    return ", ".join(
        part for part in (short_title(item), *item.categories, item.text[:TEXT_CHARACTERS]) if part
    )


def _flat(rows: Sequence[Sequence[int]]) -> Tensor:
    parts = [np.asarray(row, dtype=np.int64) for row in rows]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]))
