"""Shares of tensors among the ranks of a group; what they send is tested with the networks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from lightx2v_sgmd.parallel.collectives import lengthened, own_part, shared, unflatten


@dataclass(frozen=True)
class OneRank:
    """A rank of a group whose others do not exist."""

    index: int
    count: int

    def rank(self) -> int:
        return self.index

    def size(self) -> int:
        return self.count


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [(5, 2, [[1, 2, 3], [4, 5, 0]]), (2, 4, [[1], [2], [0], [0]]), (4, 2, [[1, 2], [3, 4]])],
)
def test_shares_are_equally_long_and_zero_after_the_end(
    length: int, count: int, expected: list[list[int]]
) -> None:
    x = torch.arange(1, length + 1).repeat(2, 1)[..., None]
    for rank, share in enumerate(expected):
        own = own_part(x, 1, OneRank(rank, count))
        assert own[..., 0].tolist() == [share, share]


def test_only_what_needs_a_gradient_is_marked() -> None:
    group, x = OneRank(0, 2), torch.ones(2)
    assert shared(x, group) is x and shared(None, group) is None
    marked = shared(x.clone().requires_grad_(), group)
    assert marked.grad_fn is not None and torch.equal(marked, x)


def test_shapes() -> None:
    assert unflatten(torch.zeros(2, 6), 1, 3).shape == (2, 3, 2)
    assert lengthened(torch.ones(2, 3, 4), 1, 5).sum(1).tolist() == [[3.0] * 4] * 2
