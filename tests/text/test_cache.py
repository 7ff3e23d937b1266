"""The cache of text embeddings stays within its size."""

from __future__ import annotations

import os
from pathlib import Path

from lightx2v_sgmd.text.cache import prune_entries


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    folder = tmp_path / ("e" * 24)
    folder.mkdir()
    (tmp_path / "wan").mkdir()
    for weights in (tmp_path / "wan" / "model.safetensors", folder / "mine.safetensors"):
        weights.write_bytes(b"0" * 1000)  # not of a cache
        os.utime(weights, (0, 0))
    for age, name in enumerate("dcba"):
        path = folder / f"{name * 64}.safetensors"
        path.write_bytes(b"0" * 100)
        os.utime(path, (1000 - age, 1000 - age))
    prune_entries(tmp_path, 250)
    assert {path.stem[0] for path in folder.iterdir()} == {"c", "d", "m"}
    assert (tmp_path / "wan" / "model.safetensors").exists()
