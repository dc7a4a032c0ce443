"""Basis: what lies inside and outside of a subspace, by hand and for any subspace."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.shield.basis import Basis, random_basis, smaller

subspaces = st.tuples(st.integers(1, 12), st.integers(0, 12), st.integers(0, 10**6)).map(
    lambda t: (t[0], min(t[1], t[0]), t[2])
)


def columns(width: int, seed: int) -> torch.Tensor:
    """A random orthonormal basis of R^d, float64 [d, d]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q


def rows_of(width: int, seed: int) -> torch.Tensor:
    return torch.randn(5, width, generator=torch.Generator().manual_seed(seed + 1))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_by_hand():
    """The line through (3, 4)/5: (5, 0) has (1.8, 2.4) along it and (3.2, -2.4) across."""
    line = Basis(torch.tensor([[0.6], [0.8]]))
    rows = torch.tensor([[5.0, 0.0], [3.0, 4.0], [-4.0, 3.0]])
    close(line.inside(rows), torch.tensor([[1.8, 2.4], [3.0, 4.0], [0.0, 0.0]]))
    close(line.outside(rows), torch.tensor([[3.2, -2.4], [0.0, 0.0], [-4.0, 3.0]]))
    assert line.leakage(rows[:1]) == pytest.approx(3 / 5)
    assert line.leakage(rows[1:2]) == pytest.approx(1)
    assert line.leakage(rows[2:]) == pytest.approx(0, abs=1e-7)
    assert line.leakage(torch.zeros(2, 2)) == 0
    assert (line.width, line.rank) == (2, 1)


def test_a_plane_stored_by_its_normal():
    plane = Basis(torch.tensor([[0.0], [0.0], [1.0]]), complement=True)
    rows = torch.tensor([[1.0, 2.0, 3.0]])
    assert torch.equal(plane.inside(rows), torch.tensor([[1.0, 2.0, 0.0]]))
    assert torch.equal(plane.outside(rows), torch.tensor([[0.0, 0.0, 3.0]]))
    assert (plane.width, plane.rank) == (3, 2)


@given(subspaces)
@settings(max_examples=80, deadline=None)
def test_a_projection(subspace):
    width, rank, seed = subspace
    basis, rows = smaller(columns(width, seed), rank, 0.5), rows_of(width, seed)
    inside, outside = basis.inside(rows), basis.outside(rows)
    assert (basis.rank, basis.width, basis.energy) == (rank, width, 0.5)
    close(inside + outside, rows)
    close(basis.inside(inside), inside)
    close(basis.outside(outside), outside)
    close(basis.outside(inside), torch.zeros_like(rows))
    close((inside * outside).sum(-1), torch.zeros(len(rows)))
    assert basis.leakage(rows) == pytest.approx(float(inside.norm() / rows.norm()), abs=1e-5)


@given(subspaces)
@settings(max_examples=80, deadline=None)
def test_the_part_removed_lies_in_the_span(subspace):
    """Solved for by least squares in the span's own columns."""
    width, rank, seed = subspace
    span, rows = columns(width, seed)[:, :rank], rows_of(width, seed)
    removed = (rows - smaller(columns(width, seed), rank, 1.0).outside(rows)).double()
    combined = span @ torch.linalg.lstsq(span, removed.T).solution if rank else 0 * removed.T
    close(combined.T, removed)


@given(subspaces)
@settings(max_examples=80, deadline=None)
def test_complement_and_plain_form_agree(subspace):
    width, rank, seed = subspace
    q, rows = columns(width, seed).float(), rows_of(width, seed)
    plain, other = Basis(q[:, :rank]), Basis(q[:, rank:], complement=True)
    assert plain.rank == other.rank == rank
    close(plain.inside(rows), other.inside(rows))
    close(plain.outside(rows), other.outside(rows))
    kept = smaller(q, rank, 1.0)
    assert kept.matrix.shape[1] == min(rank, width - rank)
    close(kept.outside(rows), plain.outside(rows))


@given(subspaces)
@settings(max_examples=40, deadline=None)
def test_a_random_basis_is_orthonormal_and_repeatable(subspace):
    width, rank, seed = subspace
    basis = random_basis(width, rank, torch.Generator().manual_seed(seed))
    again = random_basis(width, rank, torch.Generator().manual_seed(seed))
    assert (basis.width, basis.rank) == (width, rank)
    assert math.isnan(basis.energy)
    assert torch.equal(basis.matrix, again.matrix)
    stored = basis.matrix.shape[1]
    assert stored == min(rank, width - rank)
    close(basis.matrix.T @ basis.matrix, torch.eye(stored))


def test_a_random_basis_prefers_no_direction():
    """A uniformly random subspace holds k/d of any vector's square, on average."""
    generator = torch.Generator().manual_seed(0)
    first = torch.eye(8)[:1]
    for rank in (2, 6):
        shares = [random_basis(8, rank, generator).leakage(first) ** 2 for _ in range(2000)]
        assert sum(shares) / len(shares) == pytest.approx(rank / 8, abs=0.02)


def test_precision_and_shape():
    """bf16 weights and stacks of matrices come back in fp32."""
    basis = smaller(columns(4, 0), 1, 1.0)
    rows = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert basis.outside(rows).dtype == torch.float32
    close(basis.outside(rows)[1], basis.outside(rows[1]))
    assert basis.to(torch.device("meta")).matrix.device.type == "meta"
    assert basis.to(torch.device("meta")).rank == 1
