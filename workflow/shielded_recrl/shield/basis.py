"""A subspace of R^d by an orthonormal basis, and what of a matrix lies inside and outside of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Basis:
    """A subspace of R^d.

    Attributes:
        matrix: orthonormal columns, fp32 [d, m]: of the subspace, or of its complement, whichever
            has fewer.
        complement: whether `matrix` spans the complement.
        energy: share of the (weighted) input energy that lies in the subspace.
    """

    matrix: Tensor
    complement: bool = False
    energy: float = 1.0

    @property
    def width(self) -> int:
        """d."""
        return self.matrix.shape[0]

    @property
    def rank(self) -> int:
        """k, the dimension of the subspace."""
        return self.width - self.matrix.shape[1] if self.complement else self.matrix.shape[1]

    def inside(self, rows: Tensor) -> Tensor:
        """The part of each row [..., d] that lies in the subspace, (X Q) Q^T, in fp32."""
        rows = rows.float()
        return rows - self._part(rows) if self.complement else self._part(rows)

    def outside(self, rows: Tensor) -> Tensor:
        """The part of each row [..., d] orthogonal to the subspace, X - (X Q) Q^T, in fp32."""
        rows = rows.float()
        return self._part(rows) if self.complement else rows - self._part(rows)

    def leakage(self, rows: Tensor) -> float:
        """||X Q|| / ||X||: the share of X inside the subspace; 0 for X = 0."""
        norm = rows.float().norm()
        return float(self.inside(rows).norm() / norm) if norm > 0 else 0.0

    def to(self, device: torch.device) -> Basis:
        """The same subspace on a device."""
        return replace(self, matrix=self.matrix.to(device))

    def _part(self, rows: Tensor) -> Tensor:
        return (rows @ self.matrix) @ self.matrix.T


def smaller(columns: Tensor, rank: int, energy: float) -> Basis:
    """The span of the first `rank` of d orthonormal columns [d, d], stored by the smaller half."""
    if 2 * rank > len(columns):
        return Basis(columns[:, rank:].float().contiguous(), complement=True, energy=energy)
    return Basis(columns[:, :rank].float().contiguous(), energy=energy)


def random_basis(width: int, rank: int, generator: torch.Generator) -> Basis:
    """A uniformly random subspace of a given rank; its energy is not known, so nan."""
    gaussian = torch.randn(width, min(rank, width - rank), generator=generator, dtype=torch.float64)
    columns = torch.linalg.qr(gaussian)[0].float().contiguous()
    return Basis(columns, complement=2 * rank > width, energy=float("nan"))
