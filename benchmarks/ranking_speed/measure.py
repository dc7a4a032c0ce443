"""What every contender shares: arguments, data, the clock, and the one JSON line it prints.

In: a text file of `user item` lines, users and items from 1, in the order of each user's history.
Out: one line of JSON on standard output. Needs numpy and torch only, so that it runs in each
peer's own environment.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

BATCH_SIZE, BLOCKS, HEADS, DROPOUT = 128, 2, 1, 0.2


class EnoughError(Exception):
    """Raised inside a peer's own training loop once enough of its steps are timed."""


class Meter:
    """Times optimizer steps, data loading included, after some that warm up.

    Args:
        warm_up: steps before the clock starts.
        seconds: how long to time.
        least: steps to time at the least.
    """

    def __init__(self, warm_up: int, seconds: float, least: int = 2) -> None:
        self.warm_up, self.seconds, self.least = warm_up, seconds, least
        self.steps, self.targets = -warm_up, 0
        self.begin, self.elapsed = time.perf_counter(), 0.0

    def step(self, targets: int) -> bool:
        """Note that a step over so many real targets is done; True once that is enough."""
        now = time.perf_counter()
        self.steps += 1
        if self.steps <= 0:
            self.begin = now
            return False
        self.targets += targets
        self.elapsed = now - self.begin
        return self.elapsed >= self.seconds and self.steps >= self.least


def arguments(losses: tuple[str, ...]) -> argparse.Namespace:
    """Parse the command line, fix the threads and the seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="`user item` lines")
    parser.add_argument("--loss", choices=losses, default=losses[0])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--max-len", type=int, default=200)
    parser.add_argument("--negatives", type=int, default=256, help="of a sampled loss")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=2, help="steps")
    parser.add_argument("--seconds", type=float, default=8, help="to time training for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="time a full ranking too")
    parser.add_argument("--source", type=Path, help="checked-out source of a peer without package")
    parser.add_argument("--work", type=Path, help="folder for the files that a peer writes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 - the generator the peers draw from
    return args


def read_sequences(path: Path) -> list[np.ndarray]:
    """Items of each user in order; entry 0 is user 1."""
    user, item = np.loadtxt(path, dtype=np.int64).T
    order = np.argsort(user, kind="stable")
    ends = np.cumsum(np.bincount(user)[1:])
    return np.split(item[order], ends[:-1])


def report(
    peer: str, args: argparse.Namespace, meter: Meter, evaluation_seconds: float | None, rss: float
) -> None:
    """Print the measurement as one line of JSON."""
    if meter.steps < 1:
        sys.exit(f"{peer}: no step was timed")
    row = {
        "peer": peer,
        "loss": args.loss,
        "dim": args.dim,
        "max_len": args.max_len,
        "steps": meter.steps,
        "targets_per_second": meter.targets / meter.elapsed,
        "seconds_per_step": meter.elapsed / meter.steps,
        "evaluation_seconds": evaluation_seconds,
        "peak_rss_mb": rss,
        "torch": torch.__version__,
    }
    print(json.dumps(row), flush=True)


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(function, *arguments) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin
