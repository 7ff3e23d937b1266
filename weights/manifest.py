"""What an export says about itself, gathered from its source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightx2v_sgmd.manifest import Manifest, sha256_files
from weights.item import Item


def manifest_for(item: Item, folder: Path) -> Manifest:
    """The manifest of an export whose other files are all in ``folder``."""
    return replace(item.source.about, dtype=item.dtype, format=item.format, sha256=hashes(folder))


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below ``folder``, by its path there with forward slashes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    return dict(zip(names, sha256_files(files), strict=True))
