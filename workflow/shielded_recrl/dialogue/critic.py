"""Train the multi-head critic on what the judges said, and refuse one that has learned nothing.

In: `judged.parquet`, the prepared dialogues whose turns it reads, an encoder or none. Out: a folder
(config.json, model.safetensors, tokenizer) that `Critic.load` reads, and `report.json`.

The whole encoder is trained, by cross-entropy against the judges' mean score, whose expectation is
least where the prediction is the expected score (Good 1952). Dialogues of the train split teach;
those of the validation split say when to stop; the gate and all numbers of the report are of the
test split, see `critic_gate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import polars as pl
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from shielded_recrl.dialogue.corpus.dialogues import Dialogues, Turn
from shielded_recrl.dialogue.critique.agreement import agreement
from shielded_recrl.dialogue.critique.gate import gate, is_plain, report_of_critic
from shielded_recrl.dialogue.critique.judged import columns, judges_of, load_judged
from shielded_recrl.dialogue.critique.model import (
    Critic,
    context_text,
    new_encoder,
    pretrained_encoder,
)
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.settings import CriticTrainingSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device
from shielded_recrl.explainer.pretrain import MAX_GRAD_NORM, WEIGHT_DECAY, learning_rate_factor
from shielded_recrl.files import write_json

# Batches whose rows are sorted by length together, so that a batch needs little padding.
POOL = 16
# No critic learns from it, so that it can settle what came of learning.
UNSEEN = "unseen"


class Rows(NamedTuple):
    """Judged responses of a split.

    Attributes:
        table: their rows.
        contexts: the turns before each.
        texts: the responses.
        scores: [n, 5] what is learned.
    """

    table: pl.DataFrame
    contexts: list[tuple[Turn, ...]]
    texts: list[str]
    scores: np.ndarray


class Fit(NamedTuple):
    """What training did.

    Attributes:
        log: a row for each epoch: epoch, train_loss, valid_loss.
        epoch: the one whose weights were kept.
        encoder_change: norm of the change of the encoder's weights over their norm.
    """

    log: list[dict[str, float]]
    epoch: int
    encoder_change: float


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
        seed: of new weights, order and bootstrap.
        settings: the embedded encoder's size, and the training.
    """
    table = load_judged(judged)
    splits = split_rows(table, Dialogues.load(data), settings.judges, judged)
    train, valid, test = (splits[name] for name in ("train", "valid", "test"))
    if encoder is None:
        texts = [context_text(row, settings.context_turns) for row in train.contexts]
        model, tokenizer = new_encoder([*texts, *train.texts], settings, seed)
    else:
        model, tokenizer = pretrained_encoder(encoder, settings.max_tokens, seed)
    model.to(default_device())
    found = fit(model, tokenizer, train, valid, settings, seed)
    critic = Critic(model, tokenizer, settings.context_turns, settings.max_tokens)
    predicted = critic(test.contexts, test.texts).numpy()
    constant = train.scores[is_plain(train.table)].mean(axis=0)
    about = report_of_critic(test.table, test.scores, predicted, constant, settings.bootstrap, seed)
    gate(about)
    about |= {
        "judges": agreement(table.filter(pl.col("split") != "train"), settings.bootstrap, seed),
        "learned_from": list(settings.judges),
        "training": found.log,
        "epoch": found.epoch,
        "encoder_change": found.encoder_change,
        "rows": {name: len(rows.texts) for name, rows in splits.items()},
        "dialogues": {name: rows.table["dialogue"].n_unique() for name, rows in splits.items()},
        "seed": seed,
    }
    critic.save(out)
    write_json(report, about)
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
    """Rows of each split that every judge scored, with the mean of the judges' scores.

    Raises:
        UserError: a judge is missing or may not be learned from, a split has nothing, a row has no
            dialogue, test lacks a kind of response, or a head says the same of every response.
    """
    known = judges_of(table)
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
    for split in ("train", "valid", "test"):
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
    for kind in sorted(kinds["train"] - kinds["test"]):
        raise UserError(
            f"{path}: no response of test is {kind}, so nothing tells what the critic learned of it; "
            "raise dialogue.judge.test_turns"
        )
    for head, values in zip(HEADS, splits["train"].scores.T, strict=True):
        if np.ptp(values) < 1e-6:
            raise UserError(
                f"{path}: {head} is {values[0]:.3g} for every response of train, so there is "
                f"nothing to learn; ask other judges than {', '.join(judges)}"
            )
    return splits


def fit(
    model: nn.Module,
    tokenizer,
    train: Rows,
    valid: Rows,
    settings: CriticTrainingSettings,
    seed: int,
) -> Fit:
    """Train a sequence classifier in place; the weights of the lowest validation loss are kept."""
    # What the critic reads, it is trained on.
    reader = Critic(model, tokenizer, settings.context_turns, settings.max_tokens)
    taught, held = (encoded(reader, rows) for rows in (train, valid))
    model.requires_grad_(True).train()
    body = dict(model.base_model.named_parameters())
    start = {name: weight.detach().clone() for name, weight in body.items()}
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    steps = settings.epochs * math.ceil(len(taught) / settings.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps)
    )
    rng = np.random.default_rng(seed)
    log: list[dict[str, float]] = []
    best, kept, epoch = math.inf, {}, 0
    with torch.random.fork_rng():
        # Dropout draws from the global generator.
        torch.manual_seed(seed)
        for number in tqdm(range(1, settings.epochs + 1), desc="critic", unit="epoch"):
            losses = []
            for batch in batches(taught, settings.batch_size, rng):
                loss = loss_of(model, tokenizer, batch)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
                optimizer.step()
                scheduler.step()
                losses.append(loss.item())
            valid_loss = mean_loss(model, tokenizer, held)
            log.append(
                {
                    "epoch": number,
                    "train_loss": float(np.mean(losses)),
                    "valid_loss": valid_loss,
                }
            )
            if not math.isfinite(valid_loss):
                raise UserError(
                    f"critic: the loss of epoch {number} is {valid_loss}; lower "
                    "dialogue.critic.learning_rate"
                )
            if valid_loss < best:
                best, epoch = valid_loss, number
                kept = {name: value.clone() for name, value in model.state_dict().items()}
            elif number - epoch >= settings.patience:
                break
    model.load_state_dict(kept)
    moved = sum(float((body[name].detach() - old).square().sum()) for name, old in start.items())
    norm = sum(float(old.square().sum()) for old in start.values())
    return Fit(log, epoch, math.sqrt(moved / norm))


class Encoded(NamedTuple):
    """A response as the encoder reads it, and its scores."""

    inputs: dict[str, list[int]]
    scores: Tensor


def encoded(reader: Critic, rows: Rows) -> list[Encoded]:
    """Inputs of the encoder, with the scores to be learned; the empty ones have no input."""
    learned, turns = reader.learned, reader.context_turns
    return [
        Encoded(learned.encoded(context_text(context, turns), text), torch.tensor(scores))
        for context, text, scores in zip(
            rows.contexts, rows.texts, rows.scores.astype(np.float32), strict=True
        )
        if text.strip()
    ]


def batches(rows: Sequence[Encoded], size: int, rng: np.random.Generator) -> list[list[Encoded]]:
    """All rows once, in batches of similar length, in random order."""
    order = rng.permutation(len(rows))
    cuts = []
    for start in range(0, len(order), POOL * size):
        pool = sorted(
            order[start : start + POOL * size], key=lambda n: len(rows[n].inputs["input_ids"])
        )
        cuts += [pool[first : first + size] for first in range(0, len(pool), size)]
    return [[rows[number] for number in cuts[place]] for place in rng.permutation(len(cuts))]


def loss_of(model: nn.Module, tokenizer, rows: Sequence[Encoded]) -> Tensor:
    """Mean cross-entropy of the heads' logistic outputs against the scores."""
    batch = tokenizer.pad([row.inputs for row in rows], return_tensors="pt")
    device = next(model.parameters()).device
    logits = model(**batch.to(device)).logits
    scores = torch.stack([row.scores for row in rows]).to(device)
    return nn.functional.binary_cross_entropy_with_logits(logits.float(), scores)


@torch.no_grad()
def mean_loss(model: nn.Module, tokenizer, rows: Sequence[Encoded], size: int = 64) -> float:
    """Mean loss over rows, without dropout."""
    order = sorted(rows, key=lambda row: len(row.inputs["input_ids"]))
    model.eval()
    total = sum(
        loss_of(model, tokenizer, part).item() * len(part)
        for part in (order[start : start + size] for start in range(0, len(order), size))
    )
    model.train()
    return total / len(order)
