"""Low-rank factors of a matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from weights.io.adapters import factorize


def low_rank(rows: int, columns: int, rank: int, noise: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, rank, generator=generator)
    right = torch.randn(rank, columns, generator=generator)
    return left @ right + noise * torch.randn(rows, columns, generator=generator)


def test_factors_of_a_low_rank_matrix_are_exact() -> None:
    matrix = low_rank(200, 150, 5)
    factors = factorize(matrix, "blocks.0.x", rank=5)
    assert factors.up.shape == (200, 5) and factors.down.shape == (5, 150)
    torch.testing.assert_close(factors.product(), matrix, atol=1e-4, rtol=1e-4)


def test_randomized_factors_lose_what_the_best_ones_lose() -> None:
    """Eckart and Young: no rank-8 product is closer than the truncated SVD."""
    matrix = low_rank(300, 200, 20, noise=0.5)
    factors = factorize(matrix, "a", rank=8)
    best = torch.linalg.svdvals(matrix)[8:].norm().item()
    assert (factors.product() - matrix).norm().item() == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_energy_takes_the_least_rank_that_holds_it(energy: float) -> None:
    matrix = low_rank(300, 200, 40, noise=0.3)
    factors = factorize(matrix, "a", energy=energy)
    squares = torch.linalg.svdvals(matrix).double() ** 2
    held = squares.cumsum(0) / squares.sum()
    least = int((held < energy).sum()) + 1
    assert least <= factors.rank <= least + 1  # the randomized values are a hair too small
    lost = (factors.product() - matrix).norm() ** 2 / matrix.norm() ** 2
    assert 1 - lost.item() >= energy - 1e-4


def test_the_global_generator_is_left_alone_and_the_seed_is_the_name() -> None:
    matrix = low_rank(300, 200, 40, noise=0.3)
    torch.manual_seed(3)
    first = factorize(matrix, "a", rank=4)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first.up, factorize(matrix, "a", rank=4).up)


def test_nothing_changed_gives_zeros() -> None:
    factors = factorize(torch.zeros(30, 20), "a", energy=0.9)
    assert not factors.product().any() and factors.rank == 1
