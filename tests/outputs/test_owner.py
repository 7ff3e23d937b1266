"""A lock tells that the process that owns it still runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightx2v_sgmd.outputs.owner import Life, Owner, here


@pytest.mark.parametrize(
    ("owner", "life"),
    [
        (lambda own: own, Life.runs),
        (lambda own: Owner(own.host, own.namespace, own.pid, own.start + 1), Life.dead),
        (lambda own: Owner(own.host, "f" * 12, own.pid, own.start), Life.unknown),
        (lambda own: Owner(own.host, own.namespace, 2**22 + 5, 1), Life.dead),
    ],
)
def test_whether_a_process_runs(owner: Callable[[Owner], Owner], life: Life) -> None:
    assert owner(here()).life() is life
