"""Limits the memory of a command: by a control group where one may be made, else by `ulimit -v`.

A control group limits memory itself, as a container does. ``ulimit -v`` limits the address space,
which counts files that are mapped too, whether or not they are in memory.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryLimit:
    """A limit that a process sets for itself before it starts a command.

    Attributes:
        kind: The limited quantity, for a table: ``memory`` or ``address space``.
        enter: Called by the process.
    """

    kind: str
    enter: Callable[[], None]


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[MemoryLimit]:
    """A limit of some bytes; its control group, if it has one, is removed at the end."""
    group = _make_group(limit)
    if group is None:
        yield MemoryLimit(
            "address space", lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        )
        return
    processes = group / "cgroup.procs"
    try:
        yield MemoryLimit("memory", lambda: _write(processes, os.getpid()))
    finally:
        with contextlib.suppress(OSError):  # a process of the command may live on
            group.rmdir()


def _make_group(limit: int) -> Path | None:
    """A control group below this process's own, without swap; None where it may not be made."""
    for parent, most, with_swap, swap in _parents():
        group = parent / f"memory-limit-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            _write(group / most, limit)
            if (group / with_swap).exists():
                _write(group / with_swap, swap if swap is not None else limit)
        except OSError:
            group.rmdir()
            continue
        return group
    return None


def _parents() -> Iterator[tuple[Path, str, str, int | None]]:
    """This process's groups: the folder, its files of both limits, and the swap's (None: both)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            folder = _GROUPS / "memory" / path.lstrip("/")
            yield folder, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", None
        elif not controllers:
            yield _GROUPS / path.lstrip("/"), "memory.max", "memory.swap.max", 0


def _write(file: Path, number: int) -> None:
    file.write_text(str(number))
