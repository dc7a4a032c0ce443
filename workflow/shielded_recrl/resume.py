"""Resumable training state in one safetensors file, written by rename, guarded by a fingerprint.

A checkpoint lives in a scratch folder that is no output of the workflow: Snakemake deletes the
outputs of a job that died, and a checkpoint must outlive it. The one before it is kept too, so that
a damaged one costs the steps between them and not the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import atomic, seal, seal_holds


class Progress(NamedTuple):
    """What a run needs to go on.

    Attributes:
        step: finished steps or epochs.
        log: rows of train.jsonl so far.
        tensors: weights, optimizer state and whatever else changes on the way.
    """

    step: int
    log: list[dict[str, Any]]
    tensors: dict[str, Tensor]


def random_state() -> dict[str, Tensor]:
    """States of the global generators of Python, NumPy and torch, as bytes."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = {
        "python": _as_tensor(random.getstate()),
        "numpy": _as_tensor([kind, keys.tolist(), *rest]),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_state(states: Mapping[str, Tensor]) -> None:
    """Put the global generators back into a state of `random_state`."""
    version, internal, following = _from_tensor(states["python"])
    random.setstate((version, tuple(internal), following))
    np.random.set_state(tuple(_from_tensor(states["numpy"])))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _as_tensor(value: Any) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def _from_tensor(tensor: Tensor) -> Any:
    return json.loads(bytes(tensor.tolist()))


def fingerprint(values: Mapping[str, Any]) -> str:
    """Digest of everything a run depends on: settings, input digests, code digest, seeds."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def save_progress(path: Path, progress: Progress, owner: str) -> None:
    """Write a checkpoint for the run with fingerprint `owner`; the last one becomes the one before."""
    from safetensors.torch import save_file

    metadata = {
        "fingerprint": owner,
        "step": str(progress.step),
        "log": json.dumps(progress.log),
    }
    tensors = {name: tensor.contiguous() for name, tensor in progress.tensors.items()}
    with atomic(path) as partial:
        save_file(tensors, partial, metadata=metadata)
        # Sealed before the last one gives way: a disk may be full for the seal.
        seal(partial)
        if path.is_file():
            os.replace(path, _before(path))


def load_progress(path: Path, owner: str) -> Progress | None:
    """Read the last whole checkpoint of the run with fingerprint `owner`.

    Returns:
        None where there is none, or only one of a run with other settings, inputs or code.

    Raises:
        UserError: the file is damaged, and the run has none before it.
    """
    damage = None
    for file in (path, _before(path)):
        try:
            progress = _read(file, owner) if file.exists() else None
        except UserError as error:
            damage = damage or error
        else:
            if progress is not None:
                if damage is not None:
                    print(f"warning: {damage}; going on from {file}", file=sys.stderr)
                    # Or it would take the place of the whole one at the next checkpoint.
                    path.unlink(missing_ok=True)
                return progress
    if damage is not None:
        raise damage
    return None


def discard_progress(path: Path) -> None:
    """Delete the checkpoints of a run that has ended."""
    for file in (path, _before(path)):
        file.unlink(missing_ok=True)


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}-before{path.suffix}")


def _read(path: Path, owner: str) -> Progress | None:
    from safetensors import SafetensorError, safe_open

    try:
        if not seal_holds(path):
            raise ValueError("its bytes do not match the checksum it was written with")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["fingerprint"] != owner:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Progress(int(metadata["step"]), json.loads(metadata["log"]), tensors)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged checkpoint ({first_line(error)}); delete it to start this run anew"
        ) from error
