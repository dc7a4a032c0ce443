"""A run of a PPO trainer, from its last checkpoint to its last step, and the files that every run has.

In: a trainer, and what writes its adapter. Out, in the folder of the run:

    adapter/                what `export` writes
    snapshots.safetensors   the trained weights after some steps, where any are asked for
    train.jsonl             a row for each step, see `logs`
    summary.json            seed, steps, cost, digest of the adapter, and what `export` says

While it goes on, its checkpoint lies in a scratch folder; of several ranks the first alone writes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from shielded_recrl.files import sealed, sha256, write_json, write_jsonl
from shielded_recrl.resume import discard_progress, load_progress, save_progress
from shielded_recrl.rl.logs import LoggerName, advance, open_loggers, progress_bar
from shielded_recrl.rl.trainer import PPO

CHECKPOINT = "checkpoint.safetensors"
# What the keys of snapshots begin with in a checkpoint.
SNAPSHOT = "snapshot/"


def run(
    trainer: PPO,
    export: Callable[[], Mapping[str, Any]],
    *,
    steps: int,
    name: str,
    owner: str,
    out: Path,
    scratch: Path,
    live: Path | None = None,
    loggers: Sequence[LoggerName] | None = None,
    snapshots_after: Collection[int] = (),
) -> None:
    """Train to the end, and write the folder of the run.

    Args:
        trainer: yet to take its first step.
        export: writes `out / "adapter"` after the last step; gives more keys of the summary. Where it
            raises, nothing else is written, and the checkpoint stays.
        steps: of the whole run.
        name: shown by the progress bar and by W&B.
        owner: fingerprint of the run; only a checkpoint that has it is gone on from.
        out: folder of the run.
        scratch: folder of checkpoints; emptied when the run is whole.
        live: folder in which loggers write while the run goes on; none: they write nothing.
        loggers: those that RECRL_LOGGERS names by default, else TensorBoard.
        snapshots_after: steps after which the trained weights are kept.

    Raises:
        UserError: the checkpoint is damaged, a logger does not start, or a step fails.
    """
    checkpoint = scratch / CHECKPOINT
    snapshots = resume(trainer, checkpoint, owner)
    leads = trainer.ranks.leads
    logging = open_loggers(
        live or out,
        (asked_loggers() if loggers is None else loggers) if live and leads else (),
        run_name=name,
        config=trainer.settings.model_dump(mode="json"),
        first_step=trainer.step + 1,
    )
    with logging as write, progress_bar(trainer.step + 1, steps, name, not leads) as bar:
        while trainer.step < steps:
            row = trainer.train_step()
            write(row)
            advance(bar, row)
            if trainer.step in snapshots_after:
                snapshots |= snapshot(trainer)
            due = trainer.step % trainer.settings.checkpoint_every == 0 and trainer.step < steps
            if due and leads:
                progress = trainer.checkpoint()
                progress = progress._replace(tensors=progress.tensors | snapshots)
                save_progress(checkpoint, progress, owner)
    trainer.ranks.leave()
    if not leads:
        return
    more = export()
    if snapshots:
        write_snapshots(snapshots, out / "snapshots.safetensors")
    write_jsonl(out / "train.jsonl", trainer.log)
    write_json(out / "summary.json", {"fingerprint": owner, **summary(trainer, out), **more})
    discard_progress(checkpoint)


def resume(trainer: PPO, checkpoint: Path, owner: str) -> dict[str, Tensor]:
    """Put a trainer where its last checkpoint left it; the snapshots that are in there.

    Raises:
        UserError: the checkpoint is damaged, and there is none before it.
    """
    if (saved := load_progress(checkpoint, owner)) is None:
        return {}
    trainer.restore(saved)
    if trainer.ranks.leads:
        print(f"resumed at step {saved.step} from {checkpoint}", file=sys.stderr)
    return {name: tensor for name, tensor in saved.tensors.items() if name.startswith(SNAPSHOT)}


def asked_loggers() -> tuple[str, ...]:
    """The loggers that the environment asks for."""
    return tuple(os.environ.get("RECRL_LOGGERS", "tensorboard").split())


def snapshot(trainer: PPO) -> dict[str, Tensor]:
    """Copies of the adapter's weights as they are now, as checkpoints name them."""
    return {
        f"{SNAPSHOT}step-{trainer.step:06d}/{name}": weight.detach().cpu().clone()
        for name, weight in trainer.parameters.items()
    }


def write_snapshots(snapshots: Mapping[str, Tensor], path: Path) -> None:
    """Write the file of snapshots."""
    from safetensors.torch import save_file

    with sealed(path) as partial:
        save_file({key.removeprefix(SNAPSHOT): t for key, t in snapshots.items()}, partial)


def summary(trainer: PPO, out: Path) -> dict[str, Any]:
    """What the summary of every run says."""
    return {
        "seed": trainer.seed,
        "steps": trainer.step,
        "seconds": sum(row["seconds"] for row in trainer.log),
        "peak_memory_mb": trainer.log[-1]["memory_mb"],
        "trainable_parameters": sum(weight.numel() for weight in trainer.parameters.values()),
        "adapter_sha256": sha256(out / "adapter" / "adapter_model.safetensors"),
    }
