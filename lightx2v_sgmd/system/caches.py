"""The folder in which the program stores what it can compute again.

Containers often have no home: no HOME, and a user number without an entry in the password file.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """A folder in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``); it may not exist.

    None if the user has no home folder; nothing is stored then.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "lightx2v-sgmd" / name
    try:
        return Path.home() / ".cache" / "lightx2v-sgmd" / name
    except RuntimeError:
        return None
