"""What training left behind: its log, and the adapter at each snapshot.

In: train.jsonl and snapshots.safetensors. Out: checked rows, and weights by step.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import adapter_parameters
from shielded_recrl.files import read_jsonl
from shielded_recrl.shield.serving import read_tensors

# What `rl train` calls a weight of a snapshot.
SNAPSHOT_KEY = re.compile(r"step-(\d+)/(.+)")


def load_snapshots(path: Path) -> dict[int, dict[str, np.ndarray]]:
    """Adapter weights by step, ascending.

    Args:
        path: snapshots.safetensors.

    Raises:
        UserError: the file is missing, damaged or empty, a weight is no number, or a key is no
            `step-<number>/<weight>`.
    """
    snapshots: dict[int, dict[str, np.ndarray]] = {}
    for key, tensor in read_tensors(path).items():
        if tensor.dtype.kind != "f" or not np.isfinite(tensor.sum(dtype=np.float64)):
            raise UserError(f"{path}: {key} holds what is no number; train the run again")
        named = SNAPSHOT_KEY.fullmatch(key)
        if not named:
            raise UserError(
                f"{path}: expected keys such as step-000004/<weight>, got {key!r}; "
                "train the run again"
            )
        snapshots.setdefault(int(named[1]), {})[named[2]] = tensor
    if not snapshots:
        raise UserError(f"{path}: no snapshot in it; train the run again")
    return dict(sorted(snapshots.items()))


def check_snapshots(
    snapshots: dict[int, dict[str, np.ndarray]], model: torch.nn.Module, path: Path
) -> None:
    """Refuse snapshots that hold other weights, or weights of other shapes, than the adapter.

    Args:
        snapshots: weights by step.
        model: PEFT model.
        path: of the snapshots, for the error.

    Raises:
        UserError: a snapshot does not fit.
    """
    wanted = {name: tuple(weight.shape) for name, weight in adapter_parameters(model).items()}
    for step, weights in snapshots.items():
        if {name: weight.shape for name, weight in weights.items()} != wanted:
            raise UserError(
                f"{path}: step {step} is no snapshot of this run's adapter; train the run again"
            )


def load_log(path: Path, last: int) -> list[dict[str, Any]]:
    """Rows of train.jsonl, one a step.

    Args:
        path: train.jsonl.
        last: step the snapshots end at.

    Raises:
        UserError: the file is missing or damaged, does not hold steps 1 to `last`, or a row has no
            finite `kl`.
    """
    try:
        rows = read_jsonl(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable log ({error}); train the run again") from error
    if not all(isinstance(row, dict) for row in rows) or (
        [row.get("step") for row in rows] != list(range(1, last + 1))
    ):
        raise UserError(
            f"{path}: expected the rows of steps 1 to {last}, where the snapshots end; "
            "train the run again"
        )
    for row in rows:
        kl = row.get("kl")
        if not isinstance(kl, int | float) or not math.isfinite(kl):
            raise UserError(
                f"{path}, step {row['step']}: expected a finite number under kl, got {kl!r}; "
                "train the run again"
            )
    return rows


@torch.no_grad()
def set_adapter(model: torch.nn.Module, weights: dict[str, np.ndarray]) -> None:
    """Put the weights of a snapshot into the adapter."""
    for name, parameter in adapter_parameters(model).items():
        parameter.copy_(torch.from_numpy(weights[name]))
