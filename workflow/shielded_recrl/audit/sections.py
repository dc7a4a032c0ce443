"""The sections of an audit that are worked out from texts, lists and the dataset.

In: data frames of before and after training. Out: JSON, with an interval wherever a mean is
claimed. Every interval draws whole users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from shielded_recrl.audit import fairness, popularity, privacy, toxicity
from shielded_recrl.audit.grounding import grounding, item_phrases, repeated
from shielded_recrl.audit.inputs import Frames, Probes, indices
from shielded_recrl.audit.resampling import (
    draws,
    interval,
    jackknife_interval,
    leave_outs,
    percentile_of_draws,
)
from shielded_recrl.audit.settings import AuditSettings
from shielded_recrl.errors import UserError
from shielded_recrl.statistics import paired_bootstrap

TIMES = ("before", "after")
# Metric of the gap that the policy bounds.
QUALITY = "ndcg@10"
# Texts quoted of those that leak.
QUOTED = 5


def audit_toxicity(
    texts: Frames,
    ordinary: tuple[str, Sequence[str]],
    scores: np.ndarray,
    settings: AuditSettings,
    seed: int,
) -> dict[str, Any]:
    """Toxicity before, after, its change, and what the scorer holds against ordinary texts.

    Args:
        texts: before and after, see `with_samples`.
        ordinary: what the ordinary texts are, and the texts.
        scores: of all three, see `judged_texts`.
        settings: scorer and sizes.
        seed: of the bootstrap.
    """
    users = texts[0]["user"].to_numpy()
    *scores, harmless_scores = np.split(scores, np.cumsum([len(rows) for rows in texts]))
    common = (settings.toxicity_threshold, settings.bootstrap, seed)
    sides = {
        when: toxicity.summarise(rows["text"].to_list(), values, users, *common)
        for when, rows, values in zip(TIMES, texts, scores, strict=True)
    }
    p95 = [percentile_of_draws(values, 95, users, settings.bootstrap, seed) for values in scores]
    source, harmless = ordinary
    baseline = toxicity.summarise(harmless, harmless_scores, np.arange(len(harmless)), *common)
    upper = privacy.upper_bound(baseline["toxic"], baseline["texts"])
    return {
        "scorer": toxicity.scorer_name(settings),
        "threshold": settings.toxicity_threshold,
        **sides,
        "change": paired_bootstrap(
            scores[1] - scores[0], settings.bootstrap, seed, clusters=users
        )._asdict(),
        "change_p95": interval(
            sides["after"]["p95"]["mean"] - sides["before"]["p95"]["mean"], p95[1] - p95[0]
        ),
        "worst": [
            {
                **texts[1].select("user", "item", "position").row(place, named=True),
                **{
                    when: {"score": float(values[place]), "text": rows["text"][place]}
                    for when, rows, values in zip(TIMES, texts, scores, strict=True)
                },
            }
            for place in toxicity.worst(*scores, settings.worst_texts).tolist()
        ],
        "baseline": {"source": source, **baseline},
        "false_positives": {
            "source": source,
            "texts": baseline["texts"],
            "share": baseline["toxic_share"],
            "upper": upper,
        },
    }


def audit_popularity(
    lists: Frames,
    items: pl.DataFrame,
    history: pl.DataFrame,
    path: Path,
    settings: AuditSettings,
    seed: int,
) -> dict[str, Any]:
    """Popularity bias of the lists of all users, before, after, and the change.

    Args:
        lists: before and after, rows of one user together.
        items: the catalogue, by item.
        history: user and item of these users' train interactions.
        path: of the lists, for errors.
        settings: sizes.
        seed: of the bootstrap.
    """
    served = [indices(rows["item"], items["item"], path) for rows in lists]
    users = lists[0]["user"].to_numpy()
    ids, owners = np.unique(users, return_inverse=True)
    counts = items["popularity"].to_numpy()
    totals = [popularity.concentration(places, len(items)) for places in served]
    means = [popularity.per_user(places, users, counts, settings.head_share) for places in served]
    distances = _taste_distances(served, owners, ids, items, history)
    told = np.isfinite(distances).all(axis=0)
    if told.any():
        for columns, values in zip(means, distances, strict=True):
            columns["jensen_shannon"] = values[told]

    def intervals(columns: dict[str, np.ndarray]) -> dict[str, Any]:
        return {
            key: paired_bootstrap(values, settings.bootstrap, seed)._asdict()
            for key, values in columns.items()
        }

    if len(ids) < 2:
        raise UserError(f"{path}: has the lists of one user, an audit needs more; evaluate more")
    times = leave_outs(len(ids))
    without = [
        popularity.resampled_concentration(places, owners, len(items), times) for places in served
    ]
    return {
        "users": len(ids),
        "users_with_categories": int(told.sum()),
        "head_share": settings.head_share,
        **{
            when: total | intervals(mean)
            for when, total, mean in zip(TIMES, totals, means, strict=True)
        },
        "change": {
            key: jackknife_interval(
                totals[1][key] - totals[0][key], without[1][key] - without[0][key]
            )
            for key in totals[0]
        }
        | intervals({key: means[1][key] - means[0][key] for key in means[0]}),
    }


def _taste_distances(
    served: Sequence[np.ndarray],
    owners: np.ndarray,
    ids: np.ndarray,
    items: pl.DataFrame,
    history: pl.DataFrame,
) -> np.ndarray:
    """Jensen-Shannon distances [2, U] of the lists before and after; nan without categories."""
    shares = popularity.category_shares(items["categories"].fill_null([]).to_list())
    had = np.searchsorted(items["item"].to_numpy(), history["item"].to_numpy())
    whose = np.searchsorted(ids, history["user"].to_numpy())
    taste = popularity.category_mass(had, whose, len(ids), shares)
    listed = (popularity.category_mass(places, owners, len(ids), shares) for places in served)
    return np.stack([popularity.taste_distance(mass, taste) for mass in listed])


def audit_fairness(
    lists: Frames,
    items: pl.DataFrame,
    users: pl.DataFrame,
    history: pl.DataFrame,
    relevant: pl.DataFrame,
    path: Path,
    settings: AuditSettings,
    seed: int,
) -> dict[str, Any]:
    """Quality and exposure by group of users, before, after, and the change of the gaps.

    Args:
        lists: before and after, rows of one user together.
        items: the catalogue, by item.
        users: columns user and group.
        history: user and item of these users' train interactions.
        relevant: user and item of what these users were to find.
        path: of the lists, for errors.
        settings: sizes.
        seed: of the bootstrap and the permutations.
    """
    ids = lists[0]["user"].unique().sort()
    columns = [_user_columns(rows, items, relevant, path, settings) for rows in lists]
    groupings = _groupings(ids, items, users, history, settings)
    times = draws(len(ids), settings.bootstrap, seed)
    sections: dict[str, Any] = {}
    worst: dict[str, tuple[list[float], list[np.ndarray]]] = {}
    for name, grouped in groupings.items():
        if grouped.reason is not None:
            sections[name] = {
                "evaluable": False,
                "reason": grouped.reason,
                "left_out": grouped.left_out,
            }
            continue
        sections[name], worst[name] = _grouped(columns, grouped, times, settings, seed)
    found: dict[str, Any] = {
        "users": len(ids),
        "min_group": settings.min_group,
        "groupings": sections,
    }
    if not worst:
        nothing = {"gap": None, "reason": "no grouping of these users is evaluable"}
        return found | nothing
    # The largest gap is looked for anew in each resample, so that its interval pays for the search.
    gaps = np.array([gap for gap, _ in worst.values()])
    drawn = np.array([values for _, values in worst.values()])
    (before, after), resampled = gaps.max(axis=0), drawn.max(axis=0)
    largest = [list(worst)[place] for place in gaps.argmax(axis=0)]
    return found | {
        "metric": QUALITY,
        "before": {"gap": interval(before, resampled[0]), "grouping": largest[0]},
        "after": {"gap": interval(after, resampled[1]), "grouping": largest[1]},
        "gap": interval(after, resampled[1]),
        "change": interval(after - before, resampled[1] - resampled[0]),
    }


def _user_columns(
    rows: pl.DataFrame,
    items: pl.DataFrame,
    relevant: pl.DataFrame,
    path: Path,
    settings: AuditSettings,
) -> dict[str, np.ndarray]:
    """NDCG@10, exposure of the long tail and mean popularity [U] of each user's list."""
    places = indices(rows["item"], items["item"], path)
    users, listed, positions = (rows[name].to_numpy() for name in ("user", "item", "position"))
    counts = items["popularity"].to_numpy()
    tail = popularity.long_tail(counts, settings.head_share)
    try:
        quality = fairness.ndcg(
            users, listed, positions, (relevant["user"].to_numpy(), relevant["item"].to_numpy())
        )
    except ValueError as error:
        raise UserError(f"{path}: {error} in the test split; give the run's own --data") from error
    return {
        QUALITY: quality,
        "tail_exposure": fairness.exposure(users, positions, tail[places]),
        "average_popularity": popularity.per_user(places, users, counts, settings.head_share)[
            "average_popularity"
        ],
    }


def _groupings(
    ids: pl.Series,
    items: pl.DataFrame,
    users: pl.DataFrame,
    history: pl.DataFrame,
    settings: AuditSettings,
) -> dict[str, fairness.Grouping]:
    """The users [U] by what the source tells, by activity and by mainstreamness."""
    own = ids.to_frame("user").join(users, on="user", how="left", maintain_order="left")
    past = (
        history.join(items.select("item", "popularity"), on="item")
        .group_by("user")
        .agg(pl.len(), pl.col("popularity").mean())
    )
    had = ids.to_frame("user").join(past, on="user", how="left", maintain_order="left")
    levels = {"activity": had["len"], "mainstreamness": had["popularity"]}
    labels = {"group": own["group"].to_list()} | {
        name: fairness.quantile_labels(values.fill_null(0).to_numpy(), settings.user_groups)
        for name, values in levels.items()
    }
    absent = "the source tells no group of its users"
    return {
        name: fairness.grouping(values, settings.min_group, absent)
        for name, values in labels.items()
    }


def _grouped(
    columns: Sequence[dict[str, np.ndarray]],
    grouped: fairness.Grouping,
    times: np.ndarray,
    settings: AuditSettings,
    seed: int,
) -> tuple[dict[str, Any], tuple[list[float], list[np.ndarray]]]:
    """Section of one grouping; and its gaps of quality before and after, also of each resample."""
    members, labels = grouped.members, grouped.labels
    frames = [
        fairness.by_group({key: values[members] for key, values in side.items()}, labels)
        for side in columns
    ]
    metrics, quality = {}, ([], [])
    for key in columns[0]:
        gaps = [float(frame.difference(method="between_groups")[key]) for frame in frames]
        drawn = [fairness.resampled_gap(side[key], grouped.membership, times) for side in columns]
        metrics[key] = {
            when: {
                "by_group": {name: float(frame.by_group[key][name]) for name in grouped.groups},
                "gap": interval(gap, values),
                "p": fairness.permutation_p(
                    side[key][members], labels, settings.permutations, seed
                ),
            }
            for when, frame, side, gap, values in zip(
                TIMES, frames, columns, gaps, drawn, strict=True
            )
        } | {"change": interval(gaps[1] - gaps[0], drawn[1] - drawn[0])}
        if key == QUALITY:
            quality = (gaps, drawn)
    sizes = dict(zip(grouped.groups, grouped.membership.sum(axis=0).tolist(), strict=True))
    section = {
        "evaluable": True,
        "groups": sizes,
        "left_out": grouped.left_out,
        "metrics": metrics,
    }
    return section, quality


def audit_privacy(
    texts: Frames,
    probes: Probes,
    items: pl.DataFrame,
    users: pl.DataFrame,
    reviews: Callable[[Set[privacy.Phrase]], Iterable[str]],
    has_reviews: bool,
    settings: AuditSettings,
) -> dict[str, Any]:
    """Texts with a leaked id or name, and texts with a copied n-gram, before and after.

    Args:
        texts: before and after, of the evaluation.
        probes: its samples are judged together with them as `samples_before` and `samples`.
        items: the catalogue.
        users: columns user, source_id and name.
        reviews: those training reviews in which a phrase may occur; asked once.
        has_reviews: whether there are any.
        settings: sizes.
    """
    titles = items["title"].fill_null("").to_list()
    descriptions = items["text"].fill_null("").to_list()
    catalogue = [*titles, *descriptions]
    numbers = users["user"].cast(pl.String).to_list()
    ids = privacy.user_ids([*users["source_id"].to_list(), *numbers], catalogue)
    names = privacy.user_names(users["name"].drop_nulls().to_list(), catalogue)
    named = users["name"].null_count() < len(users)
    batches = {
        "before": texts[0]["text"].to_list(),
        "after": texts[1]["text"].to_list(),
    }
    batches["samples_before"] = [*batches["before"], *probes.before]
    batches["samples"] = [*batches["after"], *probes.after]
    # All at once, so that the reviews, which may be many, are read once.
    written = [text for batch in batches.values() for text in batch]
    words = settings.overlap_words
    marks = {
        "ids": privacy.leaks(written, ids),
        "names": privacy.leaks(written, names),
        "copied": privacy.copies(written, descriptions, titles, words),
        "copied_reviews": privacy.copies(
            written, reviews(privacy.phrases_of(written, words)), titles, words
        ),
    }
    ends = np.cumsum([len(batch) for batch in batches.values()])[:-1]
    parts = {key: np.split(mark, ends) for key, mark in marks.items()}

    def rates(batch: list[str], own: dict[str, np.ndarray]) -> dict[str, Any]:
        leaked = own["ids"] | own["names"]
        return {
            "texts": len(batch),
            "leaks": int(leaked.sum()),
            "leak_rate": float(leaked.mean()),
            "leak_rate_upper": privacy.upper_bound(int(leaked.sum()), len(batch)),
            "leaked_ids": int(own["ids"].sum()),
            "leaked_names": int(own["names"].sum()) if named else None,
            "leaked_texts": [batch[index] for index in np.flatnonzero(leaked)[:QUOTED]],
            "copied_share": float(own["copied"].mean()),
            "copied_review_share": float(own["copied_reviews"].mean()) if has_reviews else None,
        }

    return {
        "ids_distinctive": len(ids.distinctive),
        "ids_after_marker": len(ids.marked),
        "names": {"evaluable": True, "distinctive": len(names.distinctive)}
        if named
        else {"evaluable": False, "reason": "the source has no names of users"},
        "reviews": {"evaluable": True}
        if has_reviews
        else {"evaluable": False, "reason": "the source has no reviews"},
        "overlap_words": words,
        **{
            when: rates(batch, {key: part[place] for key, part in parts.items()})
            for place, (when, batch) in enumerate(batches.items())
        },
    }


def audit_grounding(texts: Frames, settings: AuditSettings, seed: int) -> dict[str, Any]:
    """Whether texts name their own item rather than others of their user, before, after, the change.

    Only users with texts for two items or more count.
    """
    several = pl.col("item").n_unique().over("user") > 1
    texts = tuple(rows.filter(several) for rows in texts)
    items, users = (texts[0][name].to_numpy() for name in ("item", "user"))
    if not len(items):
        reason = "no user has texts for two items, so they cannot be dealt to another"
        return {"evaluable": False, "reason": reason, "paired_minus_shuffled": None}
    phrases = [
        item_phrases(row["title"], row["categories"])
        for row in texts[0].select("title", "categories").iter_rows(named=True)
    ]
    columns = []
    for rows in texts:
        written = rows["text"].to_list()
        told = grounding(written, users, items, phrases)
        columns.append(
            {
                "paired": told.paired,
                "shuffled": told.shuffled,
                "paired_minus_shuffled": told.paired - told.shuffled,
                "repeated": repeated(written, items).astype(np.float64),
            }
        )

    def intervals(values: dict[str, np.ndarray]) -> dict[str, Any]:
        return {
            key: paired_bootstrap(column, settings.bootstrap, seed, clusters=users)._asdict()
            for key, column in values.items()
        }

    sides = [intervals(side) for side in columns]
    return {
        "evaluable": True,
        "texts": len(items),
        "users": len(np.unique(users)),
        "items": len(np.unique(items)),
        **dict(zip(TIMES, sides, strict=True)),
        "change": intervals({key: columns[1][key] - columns[0][key] for key in columns[0]}),
        "paired_minus_shuffled": sides[1]["paired_minus_shuffled"],
    }
