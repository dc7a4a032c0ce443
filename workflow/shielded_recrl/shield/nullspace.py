"""The null-space shield: lora_A orthogonal to the inputs the protected prefixes produce.

A LoRA update of a linear layer is x -> B A x (Hu et al. 2022). With Q [d_in, k] an orthonormal
basis of the layer's inputs x when the protected prefixes run through the base LM, A Q = 0 makes
the update zero on all of them, and by induction over layers no protected hidden state moves.
Projecting gradients alone does not keep A Q = 0, because Adam rescales element by element, so A
is projected after every optimizer step as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shielded_recrl.errors import UserError


def project_out(matrix: Tensor, basis: Tensor) -> Tensor:
    """A - (A Q) Q^T, in fp32.

    Args:
        matrix: A [r, d_in].
        basis: Q [d_in, k], orthonormal columns.
    """
    wide = matrix.float()
    return (wide - (wide @ basis) @ basis.T).to(matrix.dtype)


def leakage(matrix: Tensor, basis: Tensor) -> float:
    """||A Q|| / ||A||: the share of A inside the protected span; 0 for A = 0."""
    norm = matrix.float().norm()
    return float((matrix.float() @ basis).norm() / norm) if norm > 0 else 0.0


class NullSpace:
    """Keeps every lora_A of a PEFT model orthogonal to its basis."""

    def __init__(self, bases: Mapping[str, Tensor]):
        """
        Args:
            bases: module name in the base LM -> Q [d_in, k].
        """
        self.bases = dict(bases)
        self.pairs: list[tuple[nn.Parameter, Tensor]] = []

    def attach(self, model: nn.Module) -> None:
        """Find each lora_A and project it now.

        Raises:
            UserError: an adapted module has no basis, or one of another width.
        """
        self.pairs = []
        for name, weight in lora_a(model).items():
            basis = self.bases.get(name)
            if basis is None or basis.shape[0] != weight.shape[1]:
                raise UserError(
                    f"bases: no basis of width {weight.shape[1]} for {name}; "
                    "collect the bases again with this base LM"
                )
            self.pairs.append((weight, basis.to(weight.device)))
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Project every lora_A; needed after any change that went past the optimizer."""
        for weight, basis in self.pairs:
            weight.copy_(project_out(weight, basis))

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Project every gradient of a lora_A."""
        for weight, basis in self.pairs:
            if weight.grad is not None:
                weight.grad.copy_(project_out(weight.grad, basis))

    def hook(self, optimizer: torch.optim.Optimizer) -> None:
        """Project gradients before, and lora_A after, every step of any torch optimizer."""
        optimizer.register_step_pre_hook(lambda *_: self.project_gradients())
        optimizer.register_step_post_hook(lambda *_: self.project())

    def leakage(self) -> float:
        """The largest ||A Q|| / ||A|| over the modules."""
        return max(leakage(weight.detach(), basis) for weight, basis in self.pairs)


def lora_a(model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
    """lora_A weights [r, d_in] by the module's name in the base LM."""
    weights = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and adapter in module.lora_A:
            weights[name.removeprefix("base_model.model.")] = module.lora_A[adapter].weight
    return weights
