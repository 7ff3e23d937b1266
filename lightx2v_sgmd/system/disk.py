"""The disk of a path that does not exist yet."""

from __future__ import annotations

import shutil
from pathlib import Path


def nearest_existing(path: Path) -> Path:
    """Returns ``path``, or the nearest of its parents that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that ``path`` is on, or will be on."""
    return shutil.disk_usage(nearest_existing(path)).free
