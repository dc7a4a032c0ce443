"""The recommender of both stages: evidence, vectors of items and of the user, fused in one sum.

In: contexts. Out: log-odds [B, I+1] that each item is named next. With w_k > 0 the weight of
mention k (of the emotions it met, of who named it, and of how long ago; learned), v_i the vector of
item i (the mean of its title words' vectors plus the mean of its attributes'), x the weights of the
words said, and E their vectors, the same as those of title words:

    user     u = A sum_k w_k v_k / sum_k w_k + sum_w x_w E_w / sum_w x_w
    new i    s_i = <u, v_i> + sum_f b_f evidence_f(context, i)
    named i  s_i = log sum_{new j} exp s_j + sum_f c_f repetition_f(context, i)

The evidence is that of `evidence.Evidence` and what titles, categories and decades have in common;
b and c are learned. A film that was named is as alike to what was named as can be, so likeness says
nothing of it: how it was named does, as odds against all new films together. What is learned of
repeats so never bends the ranking of new films.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from shielded_recrl.dialogue.corpus.dialogues import ROLES
from shielded_recrl.dialogue.recommender.contexts import EMOTION_WEIGHTS, NEUTRAL, Context
from shielded_recrl.dialogue.recommender.evidence import Evidence
from shielded_recrl.dialogue.recommender.items import DECADE, Catalogue, unit_length, unit_rows

# What the score sums up, and the weight each begins with.
EVIDENCE = {
    "popularity": 1.0,
    "cooccurrence": 0.4,
    "words": 0.3,
    "attribute_words": 0.2,
    "related": 1.0,
    "attributes": 1.0,
    "dialogues": 1.0,
    "title_said": 0.5,
    "titles_shared": 2.0,
    "categories_shared": 2.0,
    "decades_shared": 0.5,
}
# The same for items that were named: always, in the last turn with any, and how often beyond once.
REPETITION = {"named": -3.0, "last": 0.0, "again": 0.0}
EMOTIONS = tuple(EMOTION_WEIGHTS)
INITIAL_STD = 0.05
# Share of dialogues that every item is taken to be named in besides.
FLOOR = 1e-3


class Batch(NamedTuple):
    """Contexts as tensors; mentions are padded with item 0.

    Attributes:
        items: [B, K] films named.
        roles: [B, K] index in `ROLES` of who named each.
        ages: [B, K] turns since.
        emotions: [B, K, 9] shares of emotions, summing to 1.
        words: [B, V] weight of each word, 0 where it was not said.
    """

    items: Tensor
    roles: Tensor
    ages: Tensor
    emotions: Tensor
    words: Tensor


class Known(NamedTuple):
    """Evidence as tensors; what is sparse has a row for each item or dialogue.

    `dialogue_items` has unit rows, `dialogue_items_t` has the plain ones as columns, and `usual` is
    the share of dialogues that name an item.
    """

    popularity: Tensor
    neighbours: Tensor
    rest: Tensor
    words: Tensor
    length: Tensor
    attribute_words: Tensor
    vectors: Tensor
    attributes: Tensor
    dialogue_words: Tensor
    dialogue_items: Tensor
    dialogue_items_t: Tensor
    rarity: Tensor
    usual: Tensor


def known(evidence: Evidence) -> Known:
    """Evidence for the model."""
    return Known(
        torch.from_numpy(evidence.popularity),
        _csr(evidence.neighbours.T),
        torch.from_numpy(evidence.rest),
        _csr(evidence.words.T),
        torch.from_numpy(evidence.length),
        torch.from_numpy(evidence.attribute_words),
        torch.from_numpy(evidence.vectors),
        torch.from_numpy(evidence.attributes),
        _csr(evidence.dialogue_words),
        _csr(unit_length(evidence.dialogue_items)),
        _csr(evidence.dialogue_items.T),
        torch.from_numpy(evidence.rarity),
        torch.from_numpy(np.asarray(evidence.dialogue_items.mean(axis=0), dtype=np.float32)),
    )


def collate(contexts: Sequence[Context], vocabulary: Mapping[str, int], word_decay: float) -> Batch:
    """Contexts as one batch.

    Args:
        contexts: at least one.
        vocabulary: word -> column; unknown words are left out.
        word_decay: a word said n turns ago weighs word_decay ** n.
    """
    rows, width = len(contexts), max(1, *(len(c.mentions) for c in contexts))
    items = np.zeros((rows, width), dtype=np.int64)
    roles, ages = np.zeros_like(items), np.zeros_like(items)
    emotions = np.zeros((rows, width, len(EMOTIONS)), dtype=np.float32)
    emotions[..., EMOTIONS.index(NEUTRAL)] = 1
    weights = np.zeros((rows, len(vocabulary)), dtype=np.float32)
    for row, context in enumerate(contexts):
        for place, (item, role, age, felt) in enumerate(context.mentions):
            items[row, place], ages[row, place] = item, age
            roles[row, place] = ROLES.index(role)
            total = sum(share for _, share in felt)
            if total > 0:
                emotions[row, place] = 0
                for name, share in felt:
                    emotions[row, place, EMOTIONS.index(name)] += share / total
        for word, age in context.words.items():
            if (column := vocabulary.get(word)) is not None:
                weights[row, column] = word_decay**age
    return Batch(*map(torch.from_numpy, (items, roles, ages, emotions, weights)))


class Recommender(nn.Module):
    """Stage 1 trains it to find a film held out of a dialogue, stage 2 the film named next."""

    def __init__(self, catalogue: Catalogue, dim: int, dropout: float) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.empty(len(catalogue.vocabulary), dim))
        self.attributes = nn.Parameter(torch.empty(len(catalogue.attributes), dim))
        for vectors in (self.words, self.attributes):
            nn.init.normal_(vectors, std=INITIAL_STD)
        self.mentions = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.evidence = nn.Parameter(torch.tensor(list(EVIDENCE.values())))
        self.repetition = nn.Parameter(torch.tensor(list(REPETITION.values())))
        # Logarithms, so that every weight stays positive.
        self.emotion = nn.Parameter(torch.tensor(list(EMOTION_WEIGHTS.values())).log())
        self.role = nn.Parameter(torch.zeros(len(ROLES)))
        # How much more a train dialogue counts that is more alike: in words, and in films.
        self.alike = nn.Parameter(torch.tensor([10.0, 3.0]))
        self.decay = nn.Parameter(torch.tensor(math.log(0.85)))
        self._describe(catalogue)

    @classmethod
    def drawn(cls, catalogue: Catalogue, dim: int, dropout: float, seed: int) -> Self:
        """One whose initial weights are drawn from a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(catalogue, dim, dropout)

    def _describe(self, catalogue: Catalogue) -> None:
        """Keep what is known of the items; no weight, so no part of the checkpoint."""
        titles, described = catalogue.titles, catalogue.described
        rarity = np.log(catalogue.n_items / np.maximum(np.asarray(titles.sum(axis=0)).ravel(), 1))
        rare = titles.copy()
        rare.data = rarity[rare.indices].astype(np.float32)
        decade = np.array([bool(DECADE.fullmatch(name)) for name in catalogue.attributes], bool)
        self._titles = _csr(unit_rows(titles))
        self._title_said = _csr(unit_rows(rare))
        self._title_shared = _csr(unit_length(rare))
        self._title_shared_t = _csr(unit_length(rare).T)
        self._described = torch.from_numpy(unit_rows(described).toarray())
        self._kinds = [
            torch.from_numpy(unit_length(described[:, columns]).toarray())
            for columns in (np.flatnonzero(~decade), np.flatnonzero(decade))
        ]

    def learned(self) -> dict[str, Any]:
        """The few weights that can be read: of evidence, emotions, roles and age."""
        by_name = {
            "evidence": (EVIDENCE, self.evidence),
            "repetition": (REPETITION, self.repetition),
            "emotions": (EMOTIONS, self.emotion.exp()),
            "roles": (ROLES, self.role.exp()),
        }
        weights = {
            kind: dict(zip(names, values.tolist(), strict=True))
            for kind, (names, values) in by_name.items()
        }
        weights["alike"] = dict(zip(("words", "films"), self.alike.tolist(), strict=True))
        return weights | {"for_each_turn": self.decay.exp().item()}

    def vectors(self) -> Tensor:
        """v [I+1, d]."""
        return self._titles @ self.words + self._described @ self.attributes

    def mention_weights(self, batch: Batch) -> Tensor:
        """w [B, K], summing to 1 where anything was named; 0 for padding."""
        weights = batch.emotions @ self.emotion.exp()
        weights = weights * torch.exp(self.role[batch.roles] + self.decay * batch.ages)
        weights = weights * (batch.items > 0)
        return weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)

    def forward(self, batch: Batch, known: Known) -> Tensor:
        """Scores [B, I+1]; that of padding is -inf."""
        weights = self.mention_weights(batch)
        vectors = self.vectors()
        named = torch.einsum("bk,bkd->bd", weights, vectors[batch.items])
        said = batch.words @ self.words / batch.words.sum(dim=1, keepdim=True).clamp_min(1e-12)
        scores = self.dropout(self.mentions(named) + said) @ vectors.T
        for strength, evidence in zip(
            self.evidence, self._evidence(batch, weights, known), strict=True
        ):
            scores = scores + strength * evidence
        places, repeated = self._repetition(batch)
        new = scores.scatter(1, places, -torch.inf).index_fill(1, torch.tensor([0]), -torch.inf)
        odds = new.logsumexp(dim=1, keepdim=True) + repeated
        return new.scatter(1, places, odds).index_fill(1, torch.tensor([0]), -torch.inf)

    def _evidence(self, batch: Batch, weights: Tensor, known: Known) -> list[Tensor]:
        """What `EVIDENCE` names, each to be broadcast to [B, I+1]."""
        spread = torch.zeros(len(weights), len(self._described))
        spread = spread.scatter_add(1, batch.items, weights)
        # Whoever named nothing is no different from anybody.
        rest = spread @ known.rest + (1 - weights.sum(dim=1))
        together = (known.neighbours @ spread.T).T + rest[:, None]
        words = (known.words @ batch.words.T).T
        return [
            known.popularity,
            together.log(),
            words - batch.words.sum(dim=1, keepdim=True) * known.length,
            (batch.words @ known.attribute_words) @ self._described.T,
            (spread @ known.vectors) @ known.vectors.T,
            (spread @ self._described @ known.attributes) @ self._described.T,
            self._dialogues(batch, spread, known),
            (self._title_said @ (batch.words > 0).float().T).T.square(),
            (self._title_shared @ (self._title_shared_t @ spread.T)).T,
            *((spread @ kind) @ kind.T for kind in self._kinds),
        ]

    def _dialogues(self, batch: Batch, spread: Tensor, known: Known) -> Tensor:
        """Log lift [B, I+1] of items in the train dialogues most alike, a softmax over them all."""
        said = batch.words * known.rarity
        said = said / said.norm(dim=1, keepdim=True).clamp_min(1e-12)
        alike = self.alike[0] * (known.dialogue_words @ said.T)
        alike = alike + self.alike[1] * (known.dialogue_items @ spread.T)
        named = (known.dialogue_items_t @ alike.softmax(dim=0)).T
        return torch.log((named + FLOOR) / (known.usual + FLOOR))

    def _repetition(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Items named [B, K] and the log-odds [B, K] of each; padding where one comes again."""
        named = batch.items > 0
        same = (batch.items[:, :, None] == batch.items[:, None, :]) & named[:, None, :]
        youngest = batch.ages.masked_fill(~named, 10**6)
        last = youngest == youngest.amin(dim=1, keepdim=True)
        facts = [named, (same & last[:, None, :]).any(dim=2), same.sum(dim=2) - 1]
        # Scattering twice to one place would count its gradient twice.
        again = same.tril(diagonal=-1).any(dim=2)
        return batch.items.masked_fill(again, 0), torch.stack(
            facts, dim=-1
        ).float() @ self.repetition


def _csr(matrix: csr_array) -> Tensor:
    """A scipy matrix as one of torch."""
    rows = matrix.tocsr()
    rows.sort_indices()
    with warnings.catch_warnings():
        # torch calls every CSR tensor a beta.
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(rows.indptr.astype(np.int64)),
            torch.from_numpy(rows.indices.astype(np.int64)),
            torch.from_numpy(rows.data.astype(np.float32)),
            size=rows.shape,
        )
