"""What jobs may take from the machine, and the environment they start in."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import MutableMapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Literal

from pydantic import Field

from shielded_recrl.lifetime import announce
from shielded_recrl.settings import Settings

LIBRARY = Path(__file__).resolve().parents[1]
# Where this folder exists beside a study, what jobs download from the hub is kept there.
HF_CACHE = Path(".cache/huggingface")


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
    announce(environment)
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    environment["RECRL_LOGGERS"] = " ".join(loggers)
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    # A home folder goes with its container; `make pod-setup` makes this one on the volume.
    if HF_CACHE.is_dir():
        environment.setdefault("HF_HOME", str(HF_CACHE.resolve()))


def count_gpus(devices: Path = Path("/dev")) -> int:
    """Number of NVIDIA GPUs that jobs may use; 0 without a driver.

    By device files, since /proc/driver/nvidia can also list those of the host that a container was
    not given. CUDA_VISIBLE_DEVICES hides some from jobs.
    """
    count = len(list(devices.glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    # CUDA sees what stands before the first number that is none.
    names = takewhile(lambda name: name and not name.startswith("-"), visible.split(","))
    return min(count, len(list(names)))


@cache
def lease_gpu(count: int, folder: Path | None = None) -> int:
    """Index of the first of several GPUs that no other job of this user has; 0 where all are taken.

    The scheduler counts GPUs and does not tell jobs which is theirs. A lease is a lock on a file,
    so it ends with its process, however that ends.

    Args:
        count: GPUs that this process sees.
        folder: where the files lie; by default that of temporary files.
    """
    folder = folder or Path(tempfile.gettempdir())
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(names) != count:
        names = list(map(str, range(count)))
    for index, name in enumerate(names):
        path = folder / f"shielded-recrl-{os.getuid()}-gpu-{name.replace('/', '-')}"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:
            # Somebody else's file of that name: as good as taken.
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        else:
            return index
    return 0
