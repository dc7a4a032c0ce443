"""Keep a LoRA adapter orthogonal to given subspaces while any optimizer trains it.

Input side: with Q an orthonormal basis of what a linear layer reads on the protected prompts,
A Q = 0 makes its update x -> s B A x zero on all of them, and by induction over the layers no
protected hidden state moves. Output side: with Q a basis of directions of the residual stream,
Q^T B = 0 keeps the update of a module that writes into that stream out of them. Modules are told by
their output width alone: of others as wide, as q, k and v of multi-head attention, the same
directions are held, though there they mean nothing.

Projecting gradients alone keeps neither: Adam rescales element by element, and weight decay and
momentum have memories of their own. So the weights are projected after every step as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.shield.adapter import active_adapter, lora_a, lora_b
from shielded_recrl.shield.basis import Basis

Side = Literal["input", "output"]


class Constraint:
    """Holds each lora_A (input side) or lora_B (output side) orthogonal to its basis.

    All arithmetic is in fp32. Weights in fp32 come out orthogonal to about 1e-7 of their norm;
    weights in bf16 are rounded afterwards, which leaves up to 2^-8 of it.
    """

    def __init__(self, modules: Mapping[str, Basis], side: Side = "input"):
        """
        Args:
            modules: module name in the base LM -> the subspace it is kept out of.
            side: input: every adapted module needs a basis of its input width; output: those
                whose output has the width of the bases need one, whatever they write into; the
                others are left alone.
        """
        self.modules, self.side = dict(modules), side
        self.held: dict[str, tuple[nn.Parameter, Basis]] = {}

    def attach(self, model: nn.Module) -> None:
        """Find the weights of a PEFT model's active adapter and project them now.

        Raises:
            UserError: an adapted module has no basis, or one of another width; or every basis
                spans the whole width, so that nothing is left to train.
        """
        adapter = active_adapter(model)
        weights = (lora_a if self.side == "input" else lora_b)(model, adapter)
        moved: dict[tuple[int, torch.device], Basis] = {}  # modules share bases: one copy a device
        self.held = {}
        for name, weight in weights.items():
            width = weight.shape[1 if self.side == "input" else 0]
            basis = self.modules.get(name)
            if basis is None and self.side == "output" and width not in self._widths():
                continue
            if basis is None or basis.width != width:
                raise UserError(
                    f"bases: no basis of width {width} for {name}; "
                    "collect the bases again with this base LM and scope"
                )
            key = (id(basis), weight.device)
            moved.setdefault(key, basis.to(weight.device))
            self.held[name] = (weight, moved[key])
        if not self.held:
            raise UserError(
                f"bases: no adapted module has an {self.side} of width {sorted(self._widths())}; "
                "adapt modules that the bases describe"
            )
        if all(basis.rank == basis.width for _, basis in self.held.values()):
            raise UserError(
                "bases: they span the whole width of every adapted module, which leaves no update "
                "to train; lower shield.energy or protect fewer users"
            )
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Project every held weight; needed after any change that went past the optimizer."""
        for weight, basis in self.held.values():
            weight.copy_(self._outside(weight, basis))

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Project the gradient of every held weight that has one."""
        for weight, basis in self.held.values():
            if weight.grad is not None:
                weight.grad.copy_(self._outside(weight.grad, basis))

    def leakage(self) -> dict[str, float]:
        """||A Q|| / ||A||, or ||Q^T B|| / ||B||, by module name; 0 for a weight of zeros."""
        return {
            name: basis.leakage(self._rows(weight.detach()))
            for name, (weight, basis) in self.held.items()
        }

    def _rows(self, matrix: Tensor) -> Tensor:
        return matrix if self.side == "input" else matrix.T

    def _outside(self, matrix: Tensor, basis: Basis) -> Tensor:
        return self._rows(basis.outside(self._rows(matrix)))

    def _widths(self) -> set[int]:
        return {basis.width for basis in self.modules.values()}
