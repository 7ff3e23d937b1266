"""The disk of a path that does not exist yet is that of its nearest parent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lightx2v_sgmd.system.disk import free_bytes, nearest_existing


def test_the_nearest_parent_that_exists(tmp_path: Path) -> None:
    assert nearest_existing(tmp_path / "a" / "b" / "c") == tmp_path
    (tmp_path / "a").mkdir()
    assert nearest_existing(tmp_path / "a" / "b" / "c") == tmp_path / "a"


def test_free_bytes_are_those_of_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def disk_usage(path: Path) -> object:
        asked.append(path)
        return shutil._ntuple_diskusage(100, 58, 42)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert free_bytes(tmp_path / "a" / "b") == 42 and asked == [tmp_path]
