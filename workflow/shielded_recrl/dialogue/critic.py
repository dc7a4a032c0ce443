"""Train the multi-head critic on what the judges said, and refuse one that has learned nothing.

In: `judged.parquet`, the prepared dialogues whose turns it reads, an encoder or none. Out: a folder
(config.json, model.safetensors, tokenizer) that `Critic.load` reads, and `report.json`.

The whole encoder is trained, by cross-entropy against the judges' mean score, whose expectation is
least where the prediction is the expected score (Good 1952). Dialogues of the train split teach, and
a share of them, held back, says when to stop; the gate and all numbers of the report are of the valid
split, see `critique.gate`. Nothing of the test split is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import tyro

from shielded_recrl.dialogue.corpus.dialogues import Dialogues
from shielded_recrl.dialogue.critique.agreement import agreement
from shielded_recrl.dialogue.critique.gate import gate, is_plain, report_of_critic
from shielded_recrl.dialogue.critique.judged import columns, judges_of, load_judged
from shielded_recrl.dialogue.critique.model import (
    Critic,
    context_text,
    new_encoder,
    pretrained_encoder,
)
from shielded_recrl.dialogue.critique.training import Rows, fit, held_back
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.settings import CriticTrainingSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device
from shielded_recrl.files import sha256, write_json

# No critic learns from it, so that it can settle what came of learning.
UNSEEN = "unseen"


def main(
    *,
    judged: Path,
    data: Path,
    out: Path,
    report: Path,
    encoder: Path | None = None,
    seed: int = 42,
    settings: Annotated[CriticTrainingSettings, tyro.conf.arg(name="")],
) -> None:
    """Train the multi-head critic on what the judges said.

    Args:
        judged: judged.parquet of `judge`.
        data: folder of the prepared dialogues.
        out: folder of the critic to write.
        report: report.json to write.
        encoder: folder of a pretrained encoder; without it, the embedded one is trained from scratch.
        seed: of what is held back, new weights, order and bootstrap.
        settings: the embedded encoder's size, and the training.
    """
    table = load_judged(judged)
    splits = split_rows(table, Dialogues.load(data), settings.judges, judged)
    train, valid = splits["train"], splits["valid"]
    taught, stop = held_back(train, settings.stop_share, seed)
    if encoder is None:
        texts = [context_text(row, settings.context_turns) for row in taught.contexts]
        model, tokenizer = new_encoder([*texts, *taught.texts], settings, seed)
    else:
        model, tokenizer = pretrained_encoder(encoder, settings.max_tokens, seed)
    model.to(default_device())
    found = fit(model, tokenizer, taught, stop, settings, seed)
    critic = Critic(model, tokenizer, settings.context_turns, settings.max_tokens)
    predicted = critic(valid.contexts, valid.texts).numpy()
    constant = train.scores[is_plain(train.table)].mean(axis=0)
    about = report_of_critic(
        valid.table, valid.scores, predicted, constant, settings.bootstrap, seed
    )
    gate(about)
    parts = {"taught": taught, "stop": stop, "valid": valid}
    about |= {
        "judges": agreement(table.filter(pl.col("split") == "valid"), settings.bootstrap, seed),
        "learned_from": list(settings.judges),
        "training": found.log,
        "epoch": found.epoch,
        "encoder_change": found.encoder_change,
        "rows": {name: len(rows.texts) for name, rows in parts.items()},
        "dialogues": {name: rows.table["dialogue"].n_unique() for name, rows in parts.items()},
        "seed": seed,
    }
    critic.save(out)
    write_json(report, about | {"model": sha256(out)})
    shares = ", ".join(
        f"{kind} {row['share']['mean']:.2f}" for kind, row in about["corruptions"].items()
    )
    print(
        f"{out}: {sum(weight.numel() for weight in model.parameters()):,} parameters, MSE "
        f"{about['heads']['overall']['mse']:.4f} of the mean's {about['heads']['overall']['mse_mean']:.4f} "
        f"by overall; gold above {shares}"
    )


def split_rows(
    table: pl.DataFrame, dialogues: Dialogues, judges: Sequence[str], path: Path
) -> dict[str, Rows]:
    """Rows of train and valid that every judge scored, with the mean of the judges' scores.

    Raises:
        UserError: a judge is missing or may not be learned from, a split has nothing, a row has no
            dialogue, valid lacks a kind of response, or a head says the same of every response.
    """
    known = judges_of(table.columns)
    if UNSEEN in judges:
        raise UserError(
            f"dialogue.critic.judges: `{UNSEEN}` settles the comparison, so no critic may learn "
            "from it; name others"
        )
    for judge in judges:
        if judge not in known:
            raise UserError(
                f"dialogue.critic.judges: {path} has no judge {judge!r}, only {', '.join(known)}"
            )
    names = [name for judge in judges for name in columns(judge)]
    table = table.drop_nulls(names)
    by_number = {dialogue.index: dialogue for dialogue in dialogues.all}
    splits = {}
    for split in ("train", "valid"):
        part = table.filter(pl.col("split") == split)
        contexts = []
        for number, turn in part.select("dialogue", "turn").iter_rows():
            dialogue = by_number.get(number)
            if dialogue is None or dialogue.split != split or not 0 < turn < len(dialogue.turns):
                raise UserError(
                    f"{path}: dialogue {number}, turn {turn} of {split} is none of the prepared "
                    "ones; run judge again"
                )
            contexts.append(dialogue.turns[:turn])
        if part["dialogue"].n_unique() < 2:
            raise UserError(
                f"{path}: judged responses of {part['dialogue'].n_unique()} dialogues in {split}, "
                "expected two at least; raise dialogue.judge's turns"
            )
        scores = part.select(names).to_numpy().reshape(len(part), len(judges), len(HEADS))
        splits[split] = Rows(part, contexts, part["text"].to_list(), scores.mean(axis=1))
    kinds = {split: set(rows.table["kind"]) for split, rows in splits.items()}
    for kind in sorted(kinds["train"] - kinds["valid"]):
        raise UserError(
            f"{path}: no response of valid is {kind}, so nothing tells what the critic learned of "
            "it; raise dialogue.judge.valid_turns or dialogue.data.valid_share"
        )
    for head, values in zip(HEADS, splits["train"].scores.T, strict=True):
        if np.ptp(values) < 1e-6:
            raise UserError(
                f"{path}: {head} is {values[0]:.3g} for every response of train, so there is "
                f"nothing to learn; ask other judges than {', '.join(judges)}"
            )
    return splits
