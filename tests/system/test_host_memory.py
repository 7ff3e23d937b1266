"""Memory is read within a container's limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.system import host_memory
from lightx2v_sgmd.system.host_memory import host_memory_gib


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"memory.max": None, "memory.current": None}
    monkeypatch.setattr(host_memory, "_number", lambda path: free[path.name])
    whole = host_memory_gib()
    assert whole is not None and whole[0] >= whole[1] > 0
    limited = {"memory.max": 2**30 // 2, "memory.current": 2**30 // 8}
    monkeypatch.setattr(host_memory, "_number", lambda path: limited[path.name])
    assert host_memory_gib() == (0.5, 0.375)


def test_no_limit_is_a_word(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory._number(tmp_path / "memory.max") is None
    assert host_memory._number(tmp_path / "missing") is None
    (tmp_path / "memory.max").write_text("1024\n")
    assert host_memory._number(tmp_path / "memory.max") == 1024
