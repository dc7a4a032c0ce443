"""SASRec on ML-1M by the published protocol: leave-one-out, full ranking, seen items removed.

In: a file of `user item` lines, each user's in order, such as the ML-1M sequences of the SASRec
repository. A user's last item is test, the one before it valid, the others train. Out, beside this
file: `results.json` with settings, curve, metrics with bootstrap intervals over users, and seconds
of each run, and the same metrics of the baselines. The epoch is chosen on validation; test is read
once, at the end.
"""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from shielded_recrl.files import read_json, write_json
from shielded_recrl.ranker.baselines import fit_baselines
from shielded_recrl.ranker.data import Splits
from shielded_recrl.ranker.evaluation import Score, evaluate_split, inner_product_score
from shielded_recrl.ranker.sasrec import SASRec, user_states
from shielded_recrl.ranker.settings import RankerSettings
from shielded_recrl.ranker.train import fit_sasrec
from shielded_recrl.statistics import bootstrap_means

HERE = Path(__file__).parent
RECIPE = RankerSettings(
    dim=64,
    blocks=2,
    heads=1,
    dropout=0.2,
    max_length=200,
    loss="sampled_softmax",
    negatives=256,
    batch_size=32,
    learning_rate=3e-3,
    average_decay=0.9995,
    max_epochs=120,
    patience=8,
    evaluate_every=2,
)


def main(
    data: Path,
    name: str = "recipe",
    seed: int = 42,
    threads: int = 2,
    settings: Annotated[RankerSettings, tyro.conf.arg(name="")] = RECIPE,
) -> None:
    """Train, evaluate once on test, and add the run to results.json.

    Args:
        data: sasrec_ml-1m.txt.gz, or another file of its form.
        name: what the run is called in results.json.
        seed: seed of the training.
        threads: CPU threads.
        settings: the recipe.
    """
    torch.set_num_threads(threads)
    splits = leave_one_out(read_sequences(data))
    started, cpu = time.perf_counter(), time.process_time()
    fit = fit_sasrec(splits, settings, seed)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    model = SASRec(splits.n_items, settings)
    model.load_state_dict(fit.weights)
    run = {
        "settings": settings.model_dump(),
        "seed": seed,
        "threads": threads,
        "gpu": torch.cuda.is_available(),
        "cpus": os.cpu_count(),
        "wall_seconds": round(wall),
        "cpu_seconds": round(cpu),
        "epochs": len(fit.history),
        "best_epoch": fit.best_epoch,
        "curve": [[row["epoch"], row["loss"], row["ndcg@10"]] for row in fit.history],
        "valid": metrics(model, splits, "valid"),
        "test": metrics(model, splits, "test"),
    }
    path = HERE / "results.json"
    results = read_json(path) if path.is_file() else {}
    if "baselines" not in results:
        results["baselines"] = baselines(splits)
    write_json(path, results | {name: run})
    test = run["test"]["ndcg@10"]
    print(
        f"{name}: test NDCG@10 {test['mean']:.4f} [{test['low']:.4f}, {test['high']:.4f}], "
        f"epoch {fit.best_epoch} of {len(fit.history)}, {wall / 60:.1f} min wall"
    )


def read_sequences(path: Path) -> list[np.ndarray]:
    """Item ids of each user, in the order of the file."""
    with gzip.open(path) as file:
        pairs = np.loadtxt(file, dtype=np.int64)
    _, starts = np.unique(pairs[:, 0], return_index=True)
    return np.split(pairs[:, 1], starts[1:])


def leave_one_out(sequences: list[np.ndarray]) -> Splits:
    """The last item of each user is test, the one before it valid."""
    return Splits.from_sequences(
        [row[:-2] for row in sequences],
        [row[-2:-1] for row in sequences],
        [row[-1:] for row in sequences],
        n_items=max(int(row.max()) for row in sequences),
    )


def metrics(model: SASRec, splits: Splits, split: str) -> dict[str, dict]:
    """NDCG@10, HR@10 and MRR@10 over all users, with 95% bootstrap intervals."""
    states = user_states(model, splits.histories(split), 128)
    return summary(splits, split, inner_product_score(states, model.items.weight.detach().numpy()))


def baselines(splits: Splits) -> dict[str, dict]:
    """Test metrics of popularity, item-kNN and EASE, whose settings validation chose."""
    return {
        name: {**baseline.setting, "test": summary(splits, "test", baseline.score("test"))}
        for name, baseline in fit_baselines(splits).items()
    }


def summary(splits: Splits, split: str, score: Score) -> dict[str, dict]:
    """Means over users with their intervals."""
    found = evaluate_split(splits, split, score, splits.evaluable(split))
    names = ("ndcg@10", "hr@10", "mrr@10")
    intervals = bootstrap_means(np.column_stack([found.ndcg, found.hr, found.mrr]))
    return {name: interval._asdict() for name, interval in zip(names, intervals, strict=True)}


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.FlagConversionOff,))
