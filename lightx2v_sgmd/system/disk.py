"""Where something will be written, before its folder is there."""

from __future__ import annotations

import shutil
from pathlib import Path


def nearest_existing(path: Path) -> Path:
    """``path``, or the nearest of its parents that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """What the disk that ``path`` is on, or will be on, has left."""
    return shutil.disk_usage(nearest_existing(path)).free
