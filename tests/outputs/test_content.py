"""Hashes of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightx2v_sgmd.outputs import content, content_hash


def test_another_file_of_the_same_size_has_another_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_SETTLED_NS", 0)
    large = tmp_path / "weights"
    large.write_bytes(b"a" * (content._SMALL + 1))
    before = content_hash(large)
    assert content_hash(large) == before
    (remembered,) = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert remembered.read_text().strip() == before
    with large.open("r+b") as file:  # in place, one byte, the same inode and size
        file.seek(777)
        file.write(b"b")
    assert content_hash(large) != before
    other = tmp_path / "other"
    other.write_bytes(b"c" * (content._SMALL + 1))
    other.replace(large)
    assert content_hash(large) not in (before, None)
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.write_text("nonsense")
    assert len(content_hash(large)) == 64
    assert json.dumps(content_hash(large)) != json.dumps(before)
