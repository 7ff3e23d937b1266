"""How ranks meet, and which one never comes."""

from __future__ import annotations

import os

import pytest

from lightx2v_sgmd.parallel.rendezvous import host_store, join
from lightx2v_sgmd.system.errors import RunError


def test_a_rank_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    store = host_store()
    launch = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**launch, "MASTER_PORT": str(store.port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(RunError, match=r"^rank 1, 2 of 3 has not joined at 127.0.0.1:\d+ within"):
        join("gloo", 1 / 60)


def test_no_meeting_point(monkeypatch: pytest.MonkeyPatch) -> None:
    port = host_store().port  # closed again at once
    launch = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**launch, "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        RunError, match=r"^rank 1 of 2: could not join the others at 127.0.0.1:\d+ "
    ):
        join("gloo", 1 / 60)
    assert "RANK" in os.environ
