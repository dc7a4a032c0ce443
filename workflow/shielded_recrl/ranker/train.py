"""Train SASRec on the train split, stopping early on validation NDCG@10.

In: a dataset folder of the data stage. Out: `model.safetensors`, the weights of the best validation,
and `train.jsonl`, one row an epoch. Validation predicts the items of the valid split from the train
history; the test split is not looked at.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from shielded_recrl.errors import UserError
from shielded_recrl.files import sha256, write_jsonl
from shielded_recrl.ranker.data import Splits, load_splits
from shielded_recrl.ranker.evaluation import evaluate_split, inner_product_score
from shielded_recrl.ranker.sasrec import Checkpoint, SASRec, batches, pad, save, user_states
from shielded_recrl.ranker.settings import RankerSettings


@dataclass(frozen=True)
class Fit:
    """A trained model with its best weights, and how it got there."""

    model: SASRec
    best_epoch: int
    history: list[dict[str, Any]]


def main(
    *,
    data: Path,
    out: Path,
    seed: int,
    settings: Annotated[RankerSettings, tyro.conf.arg(name="")] = RankerSettings(),  # noqa: B008
) -> None:
    """Train SASRec on a dataset.

    Args:
        data: dataset folder, for example results/data/books.
        out: folder to write model.safetensors and train.jsonl to.
        seed: seed of initial weights, batches and dropout.
        settings: the ranker's settings.
    """
    splits = load_splits(data)
    if not len(splits.evaluable("valid")):
        raise UserError(
            f"{data / 'valid.parquet'}: no user has a new item in it, so there is nothing to stop "
            "training by; enlarge valid_share or the dataset"
        )
    if not any(len(row) > 1 for row in splits.train):
        raise UserError(f"{data / 'train.parquet'}: no user has two interactions to learn from")
    fit = fit_sasrec(splits, settings, seed)
    save(
        out / "model.safetensors",
        fit.model.state_dict(),
        Checkpoint(settings, splits.n_items, sha256(data / "train.parquet"), seed, fit.best_epoch),
    )
    write_jsonl(out / "train.jsonl", fit.history)
    best = fit.history[fit.best_epoch - 1]["ndcg@10"]
    print(
        f"wrote {out / 'model.safetensors'} and train.jsonl: "
        f"best validation NDCG@10 {best:.4f} after epoch {fit.best_epoch} of {len(fit.history)}"
    )


def fit_sasrec(splits: Splits, settings: RankerSettings, seed: int) -> Fit:
    """Train with Adam until the patience or the epochs run out; keep the best weights.

    Initial weights and dropout draw from torch's global generator, which is seeded here and given
    back as it was found.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SASRec(splits.n_items, settings).to(device)
        return _train(model, splits, settings, torch.Generator().manual_seed(seed))


def validation_ndcg(model: SASRec, splits: Splits, users: np.ndarray, batch_size: int) -> float:
    """Mean NDCG@10 of these users on the valid split, predicted from the train history."""
    states = user_states(model, splits.train, batch_size)
    items = model.items.weight.detach().cpu().numpy()
    score = inner_product_score(states, items)
    return float(evaluate_split(splits, "valid", score, users).ndcg.mean())


def _train(
    model: SASRec, splits: Splits, settings: RankerSettings, generator: torch.Generator
) -> Fit:
    device = model.items.weight.device
    validated = splits.evaluable("valid")
    sequences = [row for row in splits.train if len(row) > 1]
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    best, best_epoch, best_weights, history, misses = -1.0, 0, {}, [], 0
    epochs = tqdm(range(1, settings.max_epochs + 1), desc="ranker", unit="epoch", mininterval=5)
    for epoch in epochs:
        total, count = 0.0, 0
        model.train()
        for batch in batches(sequences, settings.batch_size, generator):
            items = pad(batch, settings.max_length + 1).to(device)
            loss = model.loss(items)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            targets = int((items[:, 1:] > 0).sum())
            total, count = total + loss.item() * targets, count + targets
        row = {"epoch": epoch, "loss": total / count, "ndcg@10": None}
        history.append(row)
        if epoch % settings.evaluate_every and epoch < settings.max_epochs:
            continue
        row["ndcg@10"] = validation_ndcg(model, splits, validated, settings.batch_size)
        epochs.set_postfix({"ndcg@10": f"{row['ndcg@10']:.4f}"}, refresh=False)
        if row["ndcg@10"] > best:
            best, best_epoch, misses = row["ndcg@10"], epoch, 0
            best_weights = copy.deepcopy(model.state_dict())
        else:
            misses += 1
            if misses == settings.patience:
                break
    model.load_state_dict(best_weights)
    return Fit(model.cpu().eval(), best_epoch, history)
