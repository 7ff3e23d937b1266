"""The size of the main memory, and how much of it is available to this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lightx2v_sgmd.system.errors import UserError

GIB: Final = 2**30
"""Bytes of one GiB."""
SPARED_GIB: Final = 0.5
"""Main memory that is left to libraries, to the allocator and to other programs."""
_GROUPS: Final = Path("/sys/fs/cgroup")
_SWAPS: Final = Path("/proc/swaps")
_UNLIMITED: Final = 2**60
"""Bytes from which a limit of version 1 is none."""
_RECLAIMED: Final = ("inactive_file", "active_file", "slab_reclaimable")
"""Entries of ``memory.stat`` that the kernel frees before it kills: what files left in memory."""


def host_memory_gib() -> tuple[float, float] | None:
    """Total and available memory in GiB, within a container's limits and ``ulimit -v``.

    Memory in which the kernel keeps files that were read counts as available. None if nothing says
    how much there is.
    """
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        kib = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}
        free = sum(kib.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
        # Linux before 3.14 and WSL 1 have no MemAvailable.
        total, available = kib["MemTotal"] / 2**20, kib.get("MemAvailable", free) / 2**20
    else:
        try:
            page = os.sysconf("SC_PAGE_SIZE") / GIB
            total = available = page * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError, AttributeError):
            return None
    for limit, used in (*_container_limits(), *_process_limits()):
        total = min(total, limit / GIB)
        available = min(available, max(0, limit - used) / GIB)
    return total, available


def available_gib() -> float:
    """The available memory, less what is left to others; unlimited where nothing says it."""
    memory = host_memory_gib()
    return float("inf") if memory is None else max(0.0, memory[1] - SPARED_GIB)


def swap_gib() -> float:
    """The free swap space in GiB that this process may use, within a container's limits.

    With it work takes long, but it does not fail; so it is not available memory, and work that
    needs it is not refused. Only swap on disks counts, not compressed memory (zram).
    """
    if any(True for _ in _process_limits()):  # swap is address space, too
        return 0.0
    try:
        rows = [line.split() for line in _SWAPS.read_text().splitlines()[1:]]
        free = sum(1024 * (int(r[-3]) - int(r[-2])) for r in rows if "/zram" not in r[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0, min([free, *_container_swap()])) / GIB


def refuse_too_large(needed_gib: float, what: str, remedy: str) -> None:
    """Refuses work that main memory and swap do not hold, before it is begun.

    Args:
        needed_gib: The memory that it needs.
        what: The work, as the message begins.
        remedy: The words on what to do, as the message ends.

    Raises:
        UserError: the memory does not suffice.
    """
    available, swap = available_gib(), swap_gib()
    if needed_gib > available + swap:
        more = f" and {swap:.3g} GiB of swap" if swap else ""
        raise UserError(
            f"{what}: needs about {needed_gib:.3g} GiB of main memory, and {available:.3g} GiB"
            f"{more} are available (free memory within this container's limits, less "
            f"{SPARED_GIB:g} GiB); {remedy}"
        )


def _container_limits() -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of each control group that this process is in, the parents' too."""
    for group in _groups(""):
        most = _number(group / "memory.max")
        if most is not None:
            yield most, _used(group, "memory.current")
    for group in _groups("memory"):
        most = _number(group / "memory.limit_in_bytes")
        if most is not None:
            yield most, _used(group, "memory.usage_in_bytes")


def _container_swap() -> Iterator[int]:
    """The bytes of swap that each of these control groups still allows."""
    for group in _groups(""):
        most = _number(group / "memory.swap.max")
        if most is not None:
            yield most - (_number(group / "memory.swap.current") or 0)
    for group in _groups("memory"):  # version 1 counts memory and swap together
        both = _number(group / "memory.memsw.limit_in_bytes")
        if both is not None and both < _UNLIMITED:
            used = _number(group / "memory.memsw.usage_in_bytes") or 0
            used -= _number(group / "memory.usage_in_bytes") or 0
            yield both - (_number(group / "memory.limit_in_bytes") or 0) - used


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, from the root: version 2's by ""."""
    # A container sees its own group as the root; a process outside of one sees the path.
    parts = Path(_own_groups().get(controller, "/").lstrip("/")).parts
    for depth in range(len(parts) + 1):
        yield (_GROUPS / controller).joinpath(*parts[:depth])


def _used(group: Path, name: str) -> int:
    """Bytes that a group uses, without those that the kernel frees when memory is short."""
    return max(0, (_number(group / name) or 0) - _reclaimable(group))


def _own_groups() -> dict[str, str]:
    """This process's control groups: version 2's by "", version 1's by their controllers."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split(":", 2) for line in lines if line.count(":") >= 2)
    return {name: path for _, names, path in fields for name in names.split(",")}


def _reclaimable(group: Path) -> int:
    """Bytes of a group's use that the kernel frees when memory is short."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(maxsplit=1) for line in lines if " " in line)
    found = 0
    for key in _RECLAIMED:  # version 1 has the sums over child groups by names of their own
        value = values.get(f"total_{key}", values.get(key, "0"))
        found += int(value) if value.isdecimal() else 0
    return found


def _process_limits() -> Iterator[tuple[int, int]]:
    """The limit of this process's address space (``ulimit -v``), and its use, if it has one."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            yield limit, pages * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError, IndexError):
        return


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
