"""Giving freed memory back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

_ALLOWED: Final = 512 * 2**20
"""Bytes by which a loop may grow before its freed memory is given back."""


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The C library's ``malloc_trim``, where there is one (glibc)."""
    if not sys.platform.startswith("linux"):
        return None
    function: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return function


def anonymous_bytes() -> int:
    """The memory of this process that no file backs (Linux)."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


class HeapTrimmer:
    """Keeps a loop over large tensors from holding the memory of those that are gone.

    Before 2.38 glibc does not reuse the memory of an aligned block for another of its size, and
    torch aligns all of its tensors. In some runs a loop over the weights of a network then keeps
    the memory of every one of them, though it holds one at a time: 4.9 GiB for the 1.3B shape in 8
    bits, where 0.5 GiB is needed.
    """

    def __init__(self) -> None:
        self._last = anonymous_bytes() if _malloc_trim() else 0

    def trim(self) -> None:
        """Returns what was freed to the system, if this loop has grown much since the last time."""
        malloc_trim = _malloc_trim()
        if malloc_trim is None or anonymous_bytes() < self._last + _ALLOWED:
            return
        malloc_trim(0)
        self._last = anonymous_bytes()
