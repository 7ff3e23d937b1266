"""Paths as users write them: with ``~`` and with variables of the environment."""

from __future__ import annotations

import os


def expanded(path: str) -> str:
    """A path with ``~`` and ``$NAME`` replaced, as a shell does it; what has no value stays.

    Shells do it on the command line, but not within quotes or after ``=``, and not in files.
    """
    return os.path.expanduser(os.path.expandvars(path))
