"""The cache is in the user's home, or nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.system.caches import cache_folder


def test_a_cache_needs_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("text") == tmp_path / "lightx2v-sgmd" / "text"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("text") == tmp_path / ".cache" / "lightx2v-sgmd" / "text"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder("text") is None
