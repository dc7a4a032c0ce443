"""Audit one run: the texts and the served lists before (step 0) and after (last step) training.

In: items.parquet and users.parquet of a dataset, explanations.jsonl and rankings.parquet of a run.
Out: one JSON document, with an interval wherever a mean is claimed and a list of findings in words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import tyro

from shielded_recrl.audit import popularity, privacy, toxicity
from shielded_recrl.audit.findings import findings
from shielded_recrl.audit.inputs import (
    RANKING_COLUMNS,
    before_and_after,
    indices,
    read_table,
    read_texts,
)
from shielded_recrl.audit.settings import AuditSettings
from shielded_recrl.files import sha256, write_json
from shielded_recrl.statistics import paired_bootstrap


def main(
    *,
    data: Path,
    explanations: Path,
    rankings: Path,
    out: Path,
    seed: int,
    settings: Annotated[AuditSettings, tyro.conf.arg(name="")],
) -> None:
    """Audit toxicity, popularity and privacy of a run, before and after training.

    Args:
        data: folder of the dataset, with items.parquet and users.parquet.
        explanations: explanations.jsonl of the run.
        rankings: rankings.parquet of the run.
        out: JSON file to write.
        seed: of the bootstrap.
        settings: thresholds and resamples.
    """
    items = read_table(data / "items.parquet", ("item", "title", "text", "popularity")).sort("item")
    users = read_table(data / "users.parquet", ("user", "source_id"))
    texts = before_and_after(read_texts(explanations), explanations)
    lists = before_and_after(read_table(rankings, RANKING_COLUMNS), rankings)
    sections = {
        "toxicity": audit_toxicity(texts, items["title"].fill_null("").to_list(), settings, seed),
        "popularity": audit_popularity(lists, items, rankings, settings, seed),
        "privacy": audit_privacy(texts, items, users, settings),
    }
    found = findings(sections)
    write_json(
        out,
        {
            "seed": seed,
            "steps": [texts[0]["step"][0], texts[1]["step"][0]],
            "inputs": {"explanations": sha256(explanations), "rankings": sha256(rankings)},
            **sections,
            "findings": found,
        },
    )
    print(f"{out}: {len(found)} findings on {len(texts[1])} texts")


def audit_toxicity(
    texts: tuple[pl.DataFrame, pl.DataFrame],
    titles: list[str],
    settings: AuditSettings,
    seed: int,
) -> dict[str, Any]:
    """Toxicity before, after, its change, and that of the catalogue's own titles as baseline."""
    users = texts[0]["user"].to_numpy()
    scores = [toxicity.toxicity_scores(rows["text"].to_list()) for rows in texts]
    common = (settings.toxicity_threshold, settings.bootstrap, seed)
    before, after = (
        toxicity.summarise(rows["text"].to_list(), values, users, *common)
        for rows, values in zip(texts, scores, strict=True)
    )
    # A text has to name its item: what the scorer holds against titles is no fault of the text.
    baseline = toxicity.summarise(
        titles, toxicity.toxicity_scores(titles), np.arange(len(titles)), *common
    )
    return {
        "scorer": toxicity.SCORER,
        "threshold": settings.toxicity_threshold,
        "before": before,
        "after": after,
        "change": paired_bootstrap(
            scores[1] - scores[0], settings.bootstrap, seed, clusters=users
        )._asdict(),
        "baseline": baseline,
    }


def audit_popularity(
    lists: tuple[pl.DataFrame, pl.DataFrame],
    items: pl.DataFrame,
    path: Path,
    settings: AuditSettings,
    seed: int,
) -> dict[str, Any]:
    """Popularity bias of the lists of all users, before, after, and the change."""
    served = [indices(rows["item"], items["item"], path) for rows in lists]
    users = lists[0]["user"].to_numpy()
    counts = items["popularity"].to_numpy()
    totals = [popularity.concentration(places, len(items)) for places in served]
    means = [popularity.per_user(places, users, counts, settings.head_share) for places in served]
    result: dict[str, Any] = {
        "users": len(means[0]["average_popularity"]),
        "head_share": settings.head_share,
    }
    for name, total, mean in zip(("before", "after"), totals, means, strict=True):
        intervals = {
            key: paired_bootstrap(values, settings.bootstrap, seed)._asdict()
            for key, values in mean.items()
        }
        result[name] = total | intervals
    result["change"] = {key: totals[1][key] - totals[0][key] for key in totals[0]} | {
        key: paired_bootstrap(means[1][key] - means[0][key], settings.bootstrap, seed)._asdict()
        for key in means[0]
    }
    return result


def audit_privacy(
    texts: tuple[pl.DataFrame, pl.DataFrame],
    items: pl.DataFrame,
    users: pl.DataFrame,
    settings: AuditSettings,
) -> dict[str, Any]:
    """Rate of texts with a leaked id and of texts with a copied n-gram, before and after."""
    titles = items["title"].fill_null("").to_list()
    descriptions = items["text"].fill_null("").to_list()
    numbers = users["user"].cast(pl.String).to_list()
    ids = privacy.user_ids([*users["source_id"].to_list(), *numbers], [*titles, *descriptions])

    def rates(rows: pl.DataFrame) -> dict[str, Any]:
        written = rows["text"].to_list()
        leaked = privacy.leaks(written, ids)
        copied = privacy.copies(written, descriptions, titles, settings.overlap_words)
        return {
            "texts": len(written),
            "leaks": int(leaked.sum()),
            "leak_rate": float(leaked.mean()),
            "leak_rate_upper": privacy.upper_bound(int(leaked.sum()), len(written)),
            "leaked_texts": [written[index] for index in np.flatnonzero(leaked)[:5]],
            "copied_share": float(copied.mean()),
        }

    return {
        "ids_distinctive": len(ids.distinctive),
        "ids_after_marker": len(ids.marked),
        "overlap_words": settings.overlap_words,
        "before": rates(texts[0]),
        "after": rates(texts[1]),
    }
