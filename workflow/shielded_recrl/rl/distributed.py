"""Ranks that share a batch: one replica each, gradients added up by one all-reduce a step.

    torchrun --standalone --nproc_per_node N -m shielded_recrl.rl train ...

Each rank takes every N-th response of the batch. Losses are divided by the tokens of the whole
batch, so the sum of the ranks' gradients is the gradient of one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

TIMEOUT = timedelta(minutes=30)


class Ranks:
    """This process among those of a run."""

    def __init__(self, rank: int = 0, world: int = 1):
        """
        Args:
            rank: of this process.
            world: number of processes.
        """
        self.rank, self.world = rank, world

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def total(self, part: Tensor) -> Tensor:
        """The sum over the ranks of a tensor of one shape."""
        if self.world > 1:
            distributed.all_reduce(part)
        return part

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over the ranks, in one all-reduce."""
        if self.world == 1:
            return
        weights = list(parameters)
        parts = [w.grad if w.grad is not None else torch.zeros_like(w) for w in weights]
        flat = self.total(torch.cat([part.flatten() for part in parts]))
        for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
            weight.grad = part.view_as(weight)

    def agree(self, weights: Iterable[Tensor]) -> None:
        """Take over the weights of rank 0, so that rounding never drives replicas apart."""
        if self.world == 1:
            return
        weights = [weight.detach() for weight in weights]
        flat = torch.cat([weight.flatten() for weight in weights])
        distributed.broadcast(flat, src=0)
        for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
            weight.copy_(part.view_as(weight))

    def leave(self) -> None:
        """End the process group."""
        if self.world > 1:
            distributed.destroy_process_group()


def join() -> Ranks:
    """Join the processes that torchrun started; a process started otherwise is alone."""
    # Other launchers set WORLD_SIZE, too, for purposes of their own.
    if not distributed.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        return Ranks()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    return Ranks(distributed.get_rank(), distributed.get_world_size())
