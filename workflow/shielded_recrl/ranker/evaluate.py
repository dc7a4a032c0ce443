"""Evaluate SASRec and write the frozen states everything downstream reads.

In: a dataset folder and `model.safetensors`. Out: `metrics.json`, means over users on the valid and
test splits beside the popularity baseline, and `states.safetensors`: `items` [n_items+1, d],
`valid_users` and `test_users` [n_users+1, d], the states after the history before each split;
float32, row 0 and users without a history are zeros; score(u, i) = <state, item>.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from shielded_recrl.errors import UserError
from shielded_recrl.files import atomic, sha256, write_json
from shielded_recrl.ranker.data import Splits, load_splits
from shielded_recrl.ranker.evaluation import evaluate_split, inner_product_score, popularity_score
from shielded_recrl.ranker.sasrec import SASRec, load, user_states


def main(*, data: Path, model: Path, out: Path) -> None:
    """Evaluate a trained SASRec; its settings are read from the model file.

    Args:
        data: dataset folder, for example results/data/books.
        model: model.safetensors of `train`.
        out: folder to write metrics.json and states.safetensors to.
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
    states = frozen_states(sasrec, splits, checkpoint.settings.batch_size)
    metrics = evaluate(splits, states, data)
    with atomic(out / "states.safetensors") as partial:
        save_file(states, partial)
    write_json(out / "metrics.json", metrics)
    ndcg, baseline = metrics["test"]["ndcg@10"], metrics["popularity"]["test"]["ndcg@10"]
    print(
        f"wrote {out / 'metrics.json'} and states.safetensors: "
        f"test NDCG@10 {ndcg:.4f}, popularity {baseline:.4f}"
    )


def frozen_states(model: SASRec, splits: Splits, batch_size: int) -> dict[str, np.ndarray]:
    """Item embeddings and user states before each split."""
    return {
        "items": model.items.weight.detach().numpy(),
        "valid_users": user_states(model, splits.histories("valid"), batch_size),
        "test_users": user_states(model, splits.histories("test"), batch_size),
    }


def evaluate(splits: Splits, states: dict[str, np.ndarray], data: Path) -> dict:
    """Mean metrics at 10 and the number of users they are means over."""

    def summary(split: str, score) -> dict[str, float]:
        users = splits.evaluable(split)
        if not len(users):
            raise UserError(f"{data / f'{split}.parquet'}: no user has a new item in it to predict")
        return evaluate_split(splits, split, score, users).means() | {"users": len(users)}

    scores = {
        split: inner_product_score(states[f"{split}_users"], states["items"])
        for split in ("valid", "test")
    }
    return {
        **{split: summary(split, score) for split, score in scores.items()},
        "popularity": {"test": summary("test", popularity_score(splits))},
    }
