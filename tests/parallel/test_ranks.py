"""Processes that share videos, and a single process that communicates nothing."""

from __future__ import annotations

import pytest

from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.errors import UserError


def test_neighbours_share_a_part_of_the_batch() -> None:
    ranks = [Ranks(rank, 8, share=2) for rank in range(8)]
    assert [r.data_rank for r in ranks] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {r.data_size for r in ranks} == {4} and [r.first for r in ranks] == [True] + [False] * 7


def test_one_process_talks_to_nobody() -> None:
    alone = Ranks()
    alone.barrier()
    assert alone.gather({"a": 1}) == [{"a": 1}] and alone.once(lambda: 3) == 3

    def refuse() -> None:
        raise UserError("prompts: are missing")

    with pytest.raises(UserError, match="^prompts: are missing$"):
        alone.once(refuse)
