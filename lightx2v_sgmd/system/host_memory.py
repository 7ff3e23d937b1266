"""The size of the main memory, and how much of it is available."""

from __future__ import annotations

import os
from pathlib import Path


def host_memory_gib() -> tuple[float, float] | None:
    """Total and available memory in GiB, within a container's limits; None if unknown."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        kib = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}
        total, available = kib["MemTotal"] / 2**20, kib["MemAvailable"] / 2**20
    else:
        try:
            page = os.sysconf("SC_PAGE_SIZE") / 2**30
            total = available = page * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError, AttributeError):
            return None
    limit, used = (_number(Path("/sys/fs/cgroup") / f) for f in ("memory.max", "memory.current"))
    if limit is not None:
        total = min(total, limit / 2**30)
        available = min(available, (limit - (used or 0)) / 2**30)
    return total, available


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
