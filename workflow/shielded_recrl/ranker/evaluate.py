"""Evaluate SASRec beside baselines and write the frozen states everything downstream reads.

In: a dataset folder, `model.safetensors` and the `train.jsonl` beside it. Out: `metrics.json`, means
over users with bootstrap intervals on the valid and test splits; `card.md` and `curve.svg`, the same
for a reader; `states.safetensors`: `items` [n_items+1, d], `valid_users` and `test_users`
[n_users+1, d], the states after the history before each split; float32, row 0 and users without a
history are zeros; score(u, i) = <state, item>.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, read_jsonl, sealed, sha256, write_json, write_text
from shielded_recrl.ranker.baselines import Baseline, fit_baselines
from shielded_recrl.ranker.card import NAMES, card, draw_curve
from shielded_recrl.ranker.data import Splits, load_splits
from shielded_recrl.ranker.evaluation import LISTED, inner_product_score, rank_split
from shielded_recrl.ranker.sasrec import SASRec, load, user_states
from shielded_recrl.statistics import bootstrap_means


def main(*, data: Path, model: Path, out: Path) -> None:
    """Evaluate a trained SASRec; its settings are read from the model file.

    Args:
        data: dataset folder, for example results/data/books.
        model: model.safetensors of `train`, with its train.jsonl beside it.
        out: folder to write metrics.json, card.md, curve.svg and states.safetensors to.
    """
    splits = load_splits(data)
    sasrec, checkpoint = load(model)
    if checkpoint.n_items != splits.n_items:
        raise UserError(
            f"{model}: trained on {checkpoint.n_items} items, but {data / 'items.parquet'} has "
            f"{splits.n_items}; train again on this dataset"
        )
    if checkpoint.train_sha256 != sha256(data / "train.parquet"):
        raise UserError(
            f"{model}: trained on other interactions than {data / 'train.parquet'}; "
            "train again on this dataset"
        )
    facts, curve = data / "stats.json", model.with_name("train.jsonl")
    for path, command in ((facts, "data prepare"), (curve, "ranker train")):
        if not path.is_file():
            raise UserError(f"{path}: no such file; `python -m shielded_recrl.{command}` writes it")
    stats, history = read_json(facts), read_jsonl(curve)
    for split in ("valid", "test"):
        if not len(splits.evaluable(split)):
            raise UserError(f"{data / f'{split}.parquet'}: no user has a new item in it to predict")
    states = frozen_states(sasrec, splits, checkpoint.settings.batch_size)
    metrics = evaluate(splits, states)
    with sealed(out / "states.safetensors") as partial:
        save_file(states, partial)
    write_json(out / "metrics.json", metrics)
    draw_curve(out / "curve.svg", history, checkpoint.best_epoch)
    write_text(out / "card.md", card(stats, splits, checkpoint, history, metrics))
    best = metrics["best_baseline"]
    print(
        f"wrote metrics.json, card.md, curve.svg and states.safetensors to {out}: "
        f"test NDCG@10 {metrics['test']['ndcg@10']:.4f}, "
        f"{NAMES[best]} {metrics[best]['test']['ndcg@10']:.4f}"
    )


def frozen_states(model: SASRec, splits: Splits, batch_size: int) -> dict[str, np.ndarray]:
    """Item embeddings and user states before each split."""
    return {
        "items": model.items.weight.detach().numpy(),
        "valid_users": user_states(model, splits.histories("valid"), batch_size),
        "test_users": user_states(model, splits.histories("test"), batch_size),
    }


def evaluate(splits: Splits, states: dict[str, np.ndarray]) -> dict[str, Any]:
    """The content of metrics.json.

    `valid` and `test` are the ranker's, and each baseline has its own; `best_baseline` is the one
    with the highest NDCG@10 on the valid split, so that the test split has no say in the choice.
    """

    def ranker(split: str):
        return inner_product_score(states[f"{split}_users"], states["items"])

    baselines = fit_baselines(splits)
    models = {"ranker": Baseline({}, ranker), **baselines}
    valid, test = (compare(splits, split, models) for split in ("valid", "test"))
    return {
        "valid": valid["ranker"],
        "test": test["ranker"],
        **{
            name: {**baseline.setting, "valid": valid[name], "test": test[name]}
            for name, baseline in baselines.items()
        },
        "best_baseline": max(baselines, key=lambda name: valid[name]["ndcg@10"]),
    }


def compare(splits: Splits, split: str, models: dict[str, Baseline]) -> dict[str, dict[str, Any]]:
    """For each model: users, every metric's mean and interval, coverage.

    A baseline also has `ranker_above`, NDCG@10 of the ranker minus its own with a paired interval.
    All intervals come from the same resamples of the users.
    """
    users = splits.evaluable(split)
    rankings = {
        name: rank_split(splits, split, model.score(split), users) for name, model in models.items()
    }
    ranker = rankings["ranker"].metrics[10].ndcg
    columns = {}
    for name, ranking in rankings.items():
        columns |= {(name, metric): values for metric, values in ranking.columns().items()}
        if name != "ranker":
            columns[name, "ranker_above"] = ranker - ranking.metrics[10].ndcg
    intervals = bootstrap_means(np.stack(list(columns.values()), axis=1))
    report = {
        name: {"users": len(users), f"coverage@{LISTED}": ranking.coverage, "intervals": {}}
        for name, ranking in rankings.items()
    }
    for (name, metric), interval in zip(columns, intervals, strict=True):
        if metric == "ranker_above":
            report[name][metric] = interval._asdict()
        else:
            report[name][metric] = interval.mean
            report[name]["intervals"][metric] = {"low": interval.low, "high": interval.high}
    return report
