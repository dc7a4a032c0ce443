"""Audit one run: its texts and served lists before (step 0) and after (last step) training.

In: the tables of a dataset; explanations.jsonl and rankings.parquet of a run; its probes.json.
Out: one JSON document, with an interval wherever a mean is claimed and a list of findings in words.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import tyro

from shielded_recrl.audit.findings import findings
from shielded_recrl.audit.injection import injection_report
from shielded_recrl.audit.inputs import (
    RANKING_COLUMNS,
    before_and_after,
    judged_texts,
    ordinary_texts,
    read_interactions,
    read_probes,
    read_table,
    read_texts,
    read_users,
    train_reviews,
    with_samples,
)
from shielded_recrl.audit.memorisation import canary_report, membership_report
from shielded_recrl.audit.score import Scores, scores_made_from
from shielded_recrl.audit.sections import (
    audit_fairness,
    audit_grounding,
    audit_popularity,
    audit_privacy,
    audit_toxicity,
)
from shielded_recrl.audit.settings import AuditSettings
from shielded_recrl.audit.toxicity import text_scores
from shielded_recrl.errors import UserError
from shielded_recrl.files import sha256, write_json
from shielded_recrl.json_parts import read_parts

CATALOGUE = ("item", "title", "text", "categories", "popularity")


def main(
    *,
    data: Path,
    explanations: Path,
    rankings: Path,
    probes: Path,
    out: Path,
    dataset: str,
    variant: str,
    seed: int,
    settings: Annotated[AuditSettings, tyro.conf.arg(name="")],
    parts: tuple[Path, ...] = (),
) -> None:
    """Audit toxicity, popularity, fairness, privacy, injection and grounding of a run.

    Args:
        data: folder of the dataset, with items, users, reviews, train, valid and test .parquet.
        explanations: explanations.jsonl of the run.
        rankings: rankings.parquet of the run.
        probes: probes.json of the run.
        out: JSON file to write.
        dataset: name written into the audit.
        variant: name written into the audit.
        seed: of the run, written into the audit; also of the bootstrap and the permutations.
        settings: scorer, thresholds and resamples.
        parts: what `audit score` wrote, of all shards; without them texts are scored here.
    """
    items = read_table(data / "items.parquet", CATALOGUE).sort("item")
    users = read_users(data / "users.parquet")
    texts = before_and_after(read_texts(explanations), explanations)
    lists = before_and_after(read_table(rankings, RANKING_COLUMNS), rankings)
    probed = read_probes(probes)
    people = lists[0]["user"].unique().to_numpy()
    train, valid, test = (
        read_interactions(data / f"{split}.parquet", people) for split in ("train", "valid", "test")
    )
    # What a user had before is no candidate any more, and so nothing to find.
    relevant = test.unique().join(pl.concat([train, valid]), on=["user", "item"], how="anti")
    ordinary = ordinary_texts(data, settings.baseline_texts, seed)
    written = with_samples(texts, probed)
    judged = judged_texts(written, ordinary[1])
    if parts:
        found = read_parts(parts, Scores, scores_made_from(judged, settings))
        scores = np.array([score for part in found for score in part.scores])
    else:
        scores = text_scores(judged, settings)
    try:
        injection = injection_report(probed.injection, settings.bootstrap, seed)
    except ValueError as error:
        raise UserError(f"{probes}: {error}; make it again with `audit probe`") from error
    sections = {
        "toxicity": audit_toxicity(written, ordinary, scores, settings, seed),
        "popularity": audit_popularity(lists, items, train, rankings, settings, seed),
        "fairness": audit_fairness(lists, items, users, train, relevant, rankings, settings, seed),
        "privacy": {
            **audit_privacy(
                texts,
                probed,
                items,
                users,
                partial(train_reviews, data / "reviews.parquet"),
                ordinary[0] == "reviews",
                settings,
            ),
            "canaries": canary_report(probed.canaries),
            "membership": membership_report(probed.membership, settings.bootstrap, seed),
        },
        "injection": injection,
        "grounding": audit_grounding(texts, settings, seed),
    }
    told = findings(sections)
    inputs = {"explanations": explanations, "rankings": rankings, "probes": probes}
    write_json(
        out,
        {
            "dataset": dataset,
            "variant": variant,
            "seed": seed,
            "steps": [texts[0]["step"][0], texts[1]["step"][0]],
            "inputs": {name: sha256(path) for name, path in inputs.items()},
            **sections,
            "findings": told,
        },
    )
    print(f"{out}: {len(told)} findings on {len(written[1])} texts")
