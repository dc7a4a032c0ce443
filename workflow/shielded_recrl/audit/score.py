"""Score one shard of the texts that an audit judges, where a classifier takes long for all of them.

In: explanations.jsonl and probes.json of a run, reviews and titles of its dataset. Out: a JSON
document with the toxicity of the shard's texts. `audit run` joins those of all shards; without shards
it scores the texts itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from shielded_recrl.audit.inputs import (
    before_and_after,
    judged_texts,
    ordinary_texts,
    read_probes,
    read_texts,
    with_samples,
)
from shielded_recrl.audit.settings import ScorerSettings
from shielded_recrl.audit.toxicity import scorer_name, text_scores
from shielded_recrl.json_parts import JsonPart, write_part
from shielded_recrl.shards import Label, require_shard


class Scores(JsonPart):
    """The toxicity of a shard's texts."""

    scores: list[float]


def main(
    *,
    data: Path,
    explanations: Path,
    probes: Path,
    out: Path,
    settings: Annotated[ScorerSettings, tyro.conf.arg(name="")],
    baseline_texts: int = 1000,
    seed: int,
    shard: int,
    shards: int,
) -> None:
    """Score one shard of the texts whose toxicity an audit judges.

    Args:
        data: folder of the dataset, with items and reviews .parquet.
        explanations: explanations.jsonl of the run.
        probes: probes.json of the run.
        out: JSON file to write.
        settings: the scorer.
        baseline_texts: ordinary texts scored beside them.
        seed: of the run.
        shard: which one, from 0.
        shards: how many there are: 1, 2, 4 ... 256.
    """
    mine = require_shard(shard, shards)
    texts = before_and_after(read_texts(explanations), explanations)
    _, ordinary = ordinary_texts(data, baseline_texts, seed)
    judged = judged_texts(with_samples(texts, read_probes(probes)), ordinary)
    scores = text_scores(judged, settings, mine).tolist()
    label = Label(
        made_from=scores_made_from(judged, settings),
        shard=shard,
        shards=shards,
        count=len(judged),
    )
    # The classifier runs on the CPU, wherever the job does.
    write_part(out, Scores(label=label, device="cpu", scores=scores))
    print(f"{out}: {len(scores)} of {len(judged)} texts, shard {shard} of {shards}")


def scores_made_from(texts: Sequence[str], settings: ScorerSettings) -> str:
    """Digest of what scores depend on: the texts, and who judges them."""
    content = json.dumps([scorer_name(settings), list(texts)])
    return hashlib.sha256(content.encode()).hexdigest()
