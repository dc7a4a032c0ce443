"""Training of the critic: every weight of an encoder, by cross-entropy against the judges' scores.

In: judged responses of train dialogues, some of them held back. Out: the model, with the weights of
the lowest loss on what was held back.

The expectation of the cross-entropy is least where the prediction is the expected score (Good 1952).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from tqdm import tqdm

from shielded_recrl.dialogue.corpus.dialogues import Turn
from shielded_recrl.dialogue.critique.model import Critic, context_text
from shielded_recrl.dialogue.settings import CriticTrainingSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.pretrain import MAX_GRAD_NORM, WEIGHT_DECAY, learning_rate_factor

# Batches whose rows are sorted by length together, so that a batch needs little padding.
POOL = 16


class Rows(NamedTuple):
    """Judged responses.

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

    def where(self, chosen: np.ndarray) -> Rows:
        """Some of the rows, by a mask [n]."""
        return Rows(
            self.table.filter(pl.Series(chosen)),
            list(compress(self.contexts, chosen)),
            list(compress(self.texts, chosen)),
            self.scores[chosen],
        )


class Fit(NamedTuple):
    """What training did.

    Attributes:
        log: a row for each epoch: epoch, train_loss, stop_loss.
        epoch: the one whose weights were kept.
        encoder_change: norm of the change of the encoder's weights over their norm.
    """

    log: list[dict[str, float]]
    epoch: int
    encoder_change: float


def held_back(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Rows that teach, and those of a share of the dialogues that say when to stop; none is empty.

    Args:
        rows: of two dialogues at least.
        share: of the dialogues that are held back.
        seed: of which.
    """
    dialogues = np.unique(rows.table["dialogue"])
    count = min(max(1, round(share * len(dialogues))), len(dialogues) - 1)
    drawn = np.random.default_rng(seed).choice(dialogues, count, replace=False)
    stop = np.isin(rows.table["dialogue"], drawn)
    return rows.where(~stop), rows.where(stop)


def fit(
    model: nn.Module,
    tokenizer,
    taught: Rows,
    stop: Rows,
    settings: CriticTrainingSettings,
    seed: int,
) -> Fit:
    """Train a sequence classifier in place.

    Args:
        model: whose weights are trained.
        tokenizer: the model's.
        taught: what it learns from.
        stop: responses of other dialogues; the weights of the lowest loss on them are kept.
        settings: of the training.
        seed: of order and dropout.

    Raises:
        UserError: the loss is no number any more.
    """
    # What the critic reads, it is trained on.
    reader = Critic(model, tokenizer, settings.context_turns, settings.max_tokens)
    learned, held = (encoded(reader, rows) for rows in (taught, stop))
    model.requires_grad_(True).train()
    body = dict(model.base_model.named_parameters())
    start = {name: weight.detach().clone() for name, weight in body.items()}
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    steps = settings.epochs * math.ceil(len(learned) / settings.batch_size)
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
            for batch in batches(learned, settings.batch_size, rng):
                loss = loss_of(model, tokenizer, batch)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
                optimizer.step()
                scheduler.step()
                losses.append(loss.item())
            stop_loss = mean_loss(model, tokenizer, held)
            train_loss = float(np.mean(losses))
            log.append({"epoch": number, "train_loss": train_loss, "stop_loss": stop_loss})
            if not math.isfinite(stop_loss):
                raise UserError(
                    f"critic: the loss of epoch {number} is {stop_loss}; lower "
                    "dialogue.critic.learning_rate"
                )
            if stop_loss < best:
                best, epoch = stop_loss, number
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
