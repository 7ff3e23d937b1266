"""Where the program keeps what it can compute again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``); it may not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lightx2v-sgmd" / name
