"""What jobs may take from the machine, and the environment they start in."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from shielded_recrl.settings import Settings

LIBRARY = Path(__file__).resolve().parents[1]


class ResourceSettings(Settings):
    """What each job that runs the LM takes."""

    threads: int = Field(1, ge=1, description="CPU threads of a job that runs the LM.")
    mem_mb: int = Field(1800, ge=100, description="Memory of a job that runs the LM, in MB.")
    gpu: int = Field(
        0, ge=0, description="GPUs of a job that runs the LM; training shares a batch among them."
    )
    runtime: int = Field(
        720, ge=1, description="Time limit of a job that runs the LM, in minutes, on a cluster."
    )
    shards: Literal[1, 2, 4, 8, 16, 32, 64, 128, 256] = Field(
        1,
        description="Jobs that share the prefixes, moments, texts and audits of a large dataset; "
        "changes no result.",
    )
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        ("tensorboard",),
        description="Where training reports while it goes on, beside train.jsonl; W&B is offline "
        "unless WANDB_MODE says otherwise.",
    )


def prepare_environment(
    environment: MutableMapping[str, str], loggers: Sequence[str] = ("tensorboard",)
) -> None:
    """Let jobs find this Python and the library, and keep their threads from fighting.

    Where training reports while it goes on changes no result, so it reaches jobs by the environment
    and is no param of a rule.

    An activated conda environment still goes before this Python. Waiting threads that spin slow
    the neighbouring jobs several times over.
    """
    for name, first in (("PATH", str(Path(sys.executable).parent)), ("PYTHONPATH", str(LIBRARY))):
        parts = [first, *environment.get(name, "").split(os.pathsep)]
        environment[name] = os.pathsep.join(part for part in dict.fromkeys(parts) if part)
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    environment["RECRL_LOGGERS"] = " ".join(loggers)
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")


def count_gpus(folder: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """Number of NVIDIA GPUs the driver shows; 0 without a driver."""
    return len(list(folder.glob("*")))
