"""The latent world behind the embedded datasets: tastes, aspects, series, popularity, mood.

In: a domain and its sizes. Out: a catalogue and, for each user, a sequence of rated events.

Named latent variables (row vectors; n items, m users, c categories, a aspects):

    C [n, c]   categories of an item: 2 or 3 neighbours on a ring, the first weighs most
    A [n, a]   aspects an item is good at (two of them)
    T [m, c]   taste of a user over categories: a favourite, a neighbour of it, and one other
    S [m, a]   aspects a user cares about (two of them)
    affinity   z-score over items, for each user, of  6 T C' + 0.5 S A'
    appeal [n] popularity of an item, normal
    mood       the next event tends to share the main category of the last one
    series     volume k+1 tends to follow a liked volume k, and is rarely read before it

Events are drawn one by one without replacement from softmax(1.5 affinity + 0.5 appeal + mood +
series). A rating is 3.6 + 0.5 affinity + N(0, 0.7). Nothing of this is ever written to a raw
file: it shows only through titles, categories, texts, order and ratings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shielded_recrl.data.settings import WorldSettings
from shielded_recrl.data.words import ASPECTS, CATEGORIES, THEMES
from shielded_recrl.errors import UserError

SERIES_SHARE = 0.4
VOLUMES = 3
LIKED = 3.75
MOOD, NEXT_VOLUME, TOO_EARLY = 0.8, 4.0, -3.0


@dataclass(frozen=True)
class Item:
    """One item of the catalogue; `volume` is 0 outside a series."""

    title: str
    categories: tuple[str, ...]
    aspects: tuple[str, ...]
    year: int
    volume: int


@dataclass(frozen=True)
class Event:
    """One user meets one item; `day` counts from the start of the world, ties are possible."""

    user: int
    item: int
    day: float
    affinity: float
    rating: float


@dataclass(frozen=True)
class World:
    """A catalogue and all events, ordered by user and then by time."""

    items: tuple[Item, ...]
    events: tuple[Event, ...]


def draw_world(domain: str, settings: WorldSettings, rng: np.random.Generator) -> World:
    """Draw a catalogue, users and their events."""
    items = draw_items(domain, settings.items, rng)
    return World(items, draw_events(domain, items, settings, rng))


def draw_items(domain: str, count: int, rng: np.random.Generator) -> tuple[Item, ...]:
    """Draw the catalogue, volumes of a series side by side and with the same categories.

    Raises:
        UserError: more items than the vocabulary has names for.
    """
    ring = list(CATEGORIES[domain])
    items: list[Item] = []
    names: set[str] = set()
    while len(items) < count:
        main = len(names) % len(ring)
        offsets = rng.choice([-2, -1, 1, 2], size=rng.integers(1, 3), replace=False)
        categories = tuple(ring[(main + offset) % len(ring)] for offset in (0, *offsets))
        aspects = tuple(map(str, rng.choice(ASPECTS[domain], size=2, replace=False)))
        name = _name([CATEGORIES[domain][category] for category in categories], names, rng)
        names.add(name)
        year = int(rng.integers(1975, 2014))
        in_series = rng.random() < SERIES_SHARE / (SERIES_SHARE + (1 - SERIES_SHARE) * VOLUMES)
        volumes = VOLUMES if in_series and count - len(items) >= VOLUMES else 1
        for volume in range(1, volumes + 1):
            title = name if volume == 1 else f"{name} {volume}"
            number = volume if volumes > 1 else 0
            items.append(Item(title, categories, aspects, year + 2 * (volume - 1), number))
    return tuple(items)


def _name(themes: list[str], taken: set[str], rng: np.random.Generator) -> str:
    """A name not yet taken: words of the main theme first, any of the item's themes last."""
    for attempt in range(200):
        leads = THEMES[themes[0]][0].split()
        lead, between = str(rng.choice(leads)), str(rng.choice(leads))
        first, second = (
            str(rng.choice(THEMES[theme][1].split())) for theme in (rng.choice(themes), themes[-1])
        )
        form = rng.random()
        if attempt > 20:
            name = f"{lead} {between} {first}" if form < 0.5 else f"{lead} {first} & {second}"
        elif form < 0.7:
            name = f"{lead} {first}"
        elif form < 0.85:
            name = f"The {lead} {first}"
        else:
            name = f"{first} & {second}"
        words = name.split()
        if name not in taken and len(set(words)) == len(words):
            return name
    raise UserError(f"world: the vocabulary has no name left after {len(taken)}; lower world.items")


def draw_events(
    domain: str, items: tuple[Item, ...], settings: WorldSettings, rng: np.random.Generator
) -> tuple[Event, ...]:
    """Draw every user's events in time order."""
    ring = list(CATEGORIES[domain])
    main = np.array([ring.index(item.categories[0]) for item in items])
    volume = np.array([item.volume for item in items])
    affinity = draw_affinity(domain, items, settings.users, rng)
    appeal = rng.normal(size=len(items))
    events: list[Event] = []
    for user in range(settings.users):
        count = round(settings.interactions * (0.6 + 0.8 * rng.beta(2, 2)))
        day = rng.uniform(0, 1200)
        base = 1.5 * affinity[user] + 0.5 * appeal + np.where(volume > 1, TOO_EARLY, 0.0)
        last = liked_last = None
        for _ in range(min(count, len(items) - 1)):
            logits = base + (0 if last is None else MOOD * (main == main[last]))
            if liked_last is not None:
                logits[liked_last + 1] += NEXT_VOLUME - TOO_EARLY
            item = int(np.argmax(logits + rng.gumbel(size=len(items))))
            rating = float(3.6 + 0.5 * affinity[user, item] + rng.normal(0, 0.7))
            # Some ratings share a moment, as in the real files.
            day += 0.0 if rng.random() < 0.03 else rng.exponential(20)
            events.append(Event(user, item, float(day), float(affinity[user, item]), rating))
            base[item] = -np.inf
            continues = 0 < volume[item] < VOLUMES and np.isfinite(base[item + 1])
            last, liked_last = item, item if continues and rating >= LIKED else None
    return tuple(events)


def draw_affinity(
    domain: str, items: tuple[Item, ...], users: int, rng: np.random.Generator
) -> np.ndarray:
    """How well each item suits each user: [users, items], z-scores over items.

    See the module docstring for the formula.
    """
    ring, aspects = list(CATEGORIES[domain]), ASPECTS[domain]
    categories = np.zeros((len(items), len(ring)))
    strengths = np.zeros((len(items), len(aspects)))
    for row, item in enumerate(items):
        categories[row, ring.index(item.categories[0])] = 0.6
        for other in item.categories[1:]:
            categories[row, ring.index(other)] = 0.4 / (len(item.categories) - 1)
        strengths[row, [aspects.index(aspect) for aspect in item.aspects]] = 1.0
    tastes = np.zeros((users, len(ring)))
    cares = np.zeros((users, len(aspects)))
    for user in range(users):
        favourite = rng.integers(len(ring))
        tastes[user, favourite] += 0.55
        tastes[user, (favourite + rng.choice([-1, 1])) % len(ring)] += 0.3
        tastes[user, rng.integers(len(ring))] += 0.15
        cares[user, rng.choice(len(aspects), size=2, replace=False)] = 1.0
    raw = 6 * tastes @ categories.T + 0.5 * cares @ strengths.T
    return (raw - raw.mean(axis=1, keepdims=True)) / raw.std(axis=1, keepdims=True)
