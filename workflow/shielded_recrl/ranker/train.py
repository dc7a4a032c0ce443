"""Train SASRec on the train split, stopping early on validation NDCG@10.

In: a dataset folder of the data stage. Out: `model.safetensors`, the weights of the best validation,
and `train.jsonl`, one row an epoch. Validation predicts the items of the valid split from the train
history; the test split is not looked at.

What is validated and kept is a running average of the weights (Izmailov et al. 2018; here
exponential, as is usual today): it ranks better than any single point of the path, from the first
epochs on, and asks for no schedule of the learning rate.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from shielded_recrl.errors import UserError
from shielded_recrl.files import sha256, write_jsonl
from shielded_recrl.machine import lease_gpu
from shielded_recrl.provenance import code_digest
from shielded_recrl.ranker.batches import batches, pad, windows
from shielded_recrl.ranker.data import Splits, load_splits
from shielded_recrl.ranker.evaluation import evaluate_split, inner_product_score
from shielded_recrl.ranker.losses import next_item_loss
from shielded_recrl.ranker.sasrec import Checkpoint, SASRec, save, user_states
from shielded_recrl.ranker.settings import RankerSettings
from shielded_recrl.resume import (
    Progress,
    discard_progress,
    fingerprint,
    load_progress,
    save_progress,
)

INPUTS = ("train", "valid", "items", "users")


def main(
    *,
    data: Path,
    out: Path,
    scratch: Path,
    seed: int,
    settings: Annotated[RankerSettings, tyro.conf.arg(name="")] = RankerSettings(),  # noqa: B008
) -> None:
    """Train SASRec on a dataset.

    Args:
        data: dataset folder, for example results/data/books.
        out: folder to write model.safetensors and train.jsonl to.
        scratch: folder of the resumable state; emptied when training ends.
        seed: seed of initial weights, batches, negatives and dropout.
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
    owner = fingerprint(
        {
            "code": code_digest("shielded_recrl.ranker.train"),
            "inputs": {name: sha256(data / f"{name}.parquet") for name in INPUTS},
            "settings": settings.model_dump(),
            "seed": seed,
        }
    )
    path = scratch / "progress.safetensors"
    saved = load_progress(path, owner)
    if saved is not None:
        print(f"resumed after epoch {saved.step} from {path}", file=sys.stderr)
    fit = fit_sasrec(splits, settings, seed, saved, lambda now: save_progress(path, now, owner))
    save(
        out / "model.safetensors",
        fit.weights,
        Checkpoint(settings, splits.n_items, sha256(data / "train.parquet"), seed, fit.best_epoch),
    )
    write_jsonl(out / "train.jsonl", fit.history)
    discard_progress(path)
    print(
        f"wrote {out / 'model.safetensors'} and train.jsonl: best validation NDCG@10 "
        f"{fit.best:.4f} after epoch {fit.best_epoch} of {len(fit.history)}"
    )


@dataclass
class Fit:
    """The best weights so far, and how training got there."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    best: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def misses(self) -> int:
        """Validations since the best one."""
        later = self.history[self.best_epoch :]
        return sum(row["ndcg@10"] is not None for row in later)


def fit_sasrec(
    splits: Splits,
    settings: RankerSettings,
    seed: int,
    saved: Progress | None = None,
    checkpoint: Callable[[Progress], None] = lambda progress: None,
) -> Fit:
    """Train with Adam until the patience or the epochs run out; keep the best weights.

    Every epoch draws from generators of its own, keyed by (seed, epoch), so that a resumed run ends
    in the same bytes. torch's global generator is given back as it was found.

    Args:
        splits: the dataset.
        settings: the ranker's settings.
        seed: seed of every draw.
        saved: state to go on from.
        checkpoint: called with the state after each validation.
    """
    gpus = torch.cuda.device_count()
    device = torch.device("cuda", lease_gpu(gpus)) if gpus else torch.device("cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trainer = Trainer(SASRec(splits.n_items, settings).to(device), settings)
        if saved is not None:
            trainer.restore(saved)
        users = validation_users(splits, settings.validation_users, seed)
        bar = tqdm(desc="ranker", unit="epoch", total=settings.max_epochs, mininterval=5)
        bar.update(len(trainer.fit.history))
        while not trainer.done():
            epoch = len(trainer.fit.history) + 1
            rng = np.random.default_rng((seed, epoch))
            torch.manual_seed(int(rng.integers(2**63)))
            loss = trainer.train_epoch(splits.train, rng)
            if not math.isfinite(loss):
                raise UserError(
                    f"training diverged in epoch {epoch}: its loss is {loss}; "
                    "lower ranker.learning_rate"
                )
            figure = None
            if epoch % settings.evaluate_every == 0 or epoch == settings.max_epochs:
                figure = validation_ndcg(trainer.average, splits, users, settings.batch_size)
                bar.set_postfix({"ndcg@10": f"{figure:.4f}"}, refresh=False)
            trainer.record(loss, figure)
            if figure is not None and not trainer.done():
                checkpoint(trainer.progress())
            bar.update()
        bar.close()
    return trainer.fit


def validation_users(splits: Splits, count: int, seed: int) -> np.ndarray:
    """At most `count` of the users whose valid split can be predicted, ascending."""
    users = splits.evaluable("valid")
    if len(users) <= count:
        return users
    return np.sort(np.random.default_rng(seed).choice(users, count, replace=False))


def validation_ndcg(model: SASRec, splits: Splits, users: np.ndarray, batch_size: int) -> float:
    """Mean NDCG@10 of these users on the valid split, predicted from the train history."""
    states = np.zeros((splits.n_users + 1, model.items.embedding_dim), dtype=np.float32)
    states[users] = user_states(model, [splits.train[user] for user in users], batch_size)
    items = model.items.weight.detach().cpu().numpy()
    score = inner_product_score(states, items)
    return float(evaluate_split(splits, "valid", score, users).ndcg.mean())


class Trainer:
    """A model, the average of its weights, its optimizer, and the best weights so far."""

    def __init__(self, model: SASRec, settings: RankerSettings) -> None:
        self.model, self.settings = model, settings
        self.average = copy.deepcopy(model)
        self.forward = torch.compile(model, dynamic=True) if settings.compile else model
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=settings.learning_rate, fused=model.items.weight.is_cuda
        )
        self.steps = 0
        self.fit = Fit()

    def train_epoch(self, sequences: Sequence[np.ndarray], rng: np.random.Generator) -> float:
        """Every next item once; returns the mean loss a target."""
        self.model.train()
        rows = windows(sequences, self.settings.max_length, rng)
        total, count = torch.zeros((), device=self.model.items.weight.device), 0
        for batch in batches(rows, self.settings.batch_size, rng):
            loss, targets = self.train_step(pad(batch, self.settings.max_length + 1))
            total += loss * targets
            count += targets
        return float(total) / count

    def train_step(self, items: Tensor) -> tuple[Tensor, int]:
        """One update on padded sequences [B, L+1]; returns the loss and the number of targets."""
        device, settings = self.model.items.weight.device, self.settings
        targets = (items[:, 1:] > 0).sum().item()
        items = items.to(device, non_blocking=True)
        known = items[:, 1:] > 0
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = next_item_loss(
                settings.loss,
                self.forward(items[:, :-1])[known],
                self.model.items.weight,
                items[:, 1:][known],
                settings.negatives,
                settings.calibration,
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        # The first weights are forgotten sooner than the decay alone would have it.
        decay = min(settings.average_decay, self.steps / (self.steps + 9))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), 1 - decay
            )
        return loss.detach(), targets

    def record(self, loss: float, ndcg: float | None) -> None:
        """Note an epoch; keep the average if its validation is the best."""
        self.fit.history.append({"epoch": len(self.fit.history) + 1, "loss": loss, "ndcg@10": ndcg})
        if ndcg is not None and ndcg > self.fit.best:
            self.fit.best, self.fit.best_epoch = ndcg, len(self.fit.history)
            weights = self.average.state_dict()
            self.fit.weights = {name: value.cpu().clone() for name, value in weights.items()}

    def done(self) -> bool:
        """Whether the epochs or the patience have run out."""
        epochs = len(self.fit.history)
        return epochs >= self.settings.max_epochs or self.fit.misses() >= self.settings.patience

    def progress(self) -> Progress:
        """A copy of all that changes from epoch to epoch."""
        tensors = {
            **{f"model.{name}": value for name, value in self.model.state_dict().items()},
            **{f"average.{name}": value for name, value in self.average.state_dict().items()},
            **{f"best.{name}": value for name, value in self.fit.weights.items()},
            "steps": torch.tensor(self.steps),
        }
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        copies = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        return Progress(len(self.fit.history), list(self.fit.history), copies)

    def restore(self, progress: Progress) -> None:
        """Go on from `progress`."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "best": {}}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in progress.tensors.items():
            part, _, name = key.partition(".")
            if part == "optimizer":
                index, _, name = name.partition(".")
                moments.setdefault(int(index), {})[name] = value
            elif part in parts:
                parts[part][name] = value
        self.model.load_state_dict(parts["model"])
        self.average.load_state_dict(parts["average"])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.steps = int(progress.tensors["steps"])
        validated = [row for row in progress.log if row["ndcg@10"] is not None]
        best = max(validated, key=lambda row: row["ndcg@10"])
        self.fit = Fit(parts["best"], best["ndcg@10"], best["epoch"], list(progress.log))
