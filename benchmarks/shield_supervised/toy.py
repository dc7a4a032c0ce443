"""A toy world: titles of several genres, users with a taste, and explanations in two styles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

GENRES, ITEMS, HISTORY, FACTORS = 8, 200, 6, 8
BOS, EOS, LIKED, NEXT, RECOMMEND, WHY, BECAUSE, IS, ENJOY, ITS, FANS, AGREE = range(1, 13)
GENRE_WORDS, NOUNS, ADJECTIVES, VOCABULARY = 16, 64, 144, 208  # where each kind of word begins


class Catalogue(NamedTuple):
    genres: np.ndarray  # [I]
    titles: np.ndarray  # token ids [I, 3]: a word of the genre and two nouns
    factors: np.ndarray  # what the ranking knows of an item [I, FACTORS]


class User(NamedTuple):
    history: np.ndarray
    item: int


def make_catalogue(rng: np.random.Generator) -> Catalogue:
    genres = np.arange(ITEMS) % GENRES
    words = GENRE_WORDS + 6 * genres + rng.integers(6, size=ITEMS)
    titles = np.column_stack([words, NOUNS + rng.integers(80, size=(ITEMS, 2))])
    factors = np.eye(GENRES)[genres] + 0.3 * rng.normal(size=(ITEMS, FACTORS))
    return Catalogue(genres, titles, factors.astype(np.float32))


def make_users(catalogue: Catalogue, count: int, rng: np.random.Generator) -> list[User]:
    """Users whose history and recommended item follow a Dirichlet taste over genres."""
    users = []
    for taste in rng.dirichlet(np.full(GENRES, 0.3), size=count):
        genres = rng.choice(GENRES, size=HISTORY + 1, p=taste)
        items = rng.integers(ITEMS // GENRES, size=HISTORY + 1) * GENRES + genres
        users.append(User(items[:-1], int(items[-1])))
    return users


def prefix(catalogue: Catalogue, user: User) -> list[int]:
    titles = [token for item in user.history for token in (*catalogue.titles[item], NEXT)]
    return [BOS, LIKED, *map(int, titles)]


def explanation(catalogue: Catalogue, user: User, new: bool, rng: np.random.Generator) -> list[int]:
    """Words that depend on history and item; the new style has other ones in another order."""
    genre, title = catalogue.genres[user.item], catalogue.titles[user.item].tolist()
    adjective = ADJECTIVES + 8 * int(genre) + int(rng.integers(4))
    same = [item for item in user.history if catalogue.genres[item] == genre]
    liked = catalogue.titles[same[-1] if same else user.history[-1]].tolist()
    if new:
        return [ENJOY, *title, ITS, adjective + 4, FANS, *liked, AGREE, EOS]
    return [BECAUSE, *liked, *title, IS, adjective, EOS]


def examples(catalogue: Catalogue, users: list[User], share_new: float, rng: np.random.Generator):
    """Token ids and labels [n, t], both padded behind; the prompt has no label."""
    rows = []
    for user in users:
        title = map(int, catalogue.titles[user.item])
        prompt = [*prefix(catalogue, user), RECOMMEND, *title, WHY]
        text = explanation(catalogue, user, bool(rng.random() < share_new), rng)
        rows.append((prompt + text, [-100] * len(prompt) + text))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    return ids, labels
