"""Identifies the process that wrote a file, and tells whether that process still runs.

A process number alone is ambiguous: two containers use the same numbers, and a machine reuses them.
So an owner consists of its machine (boot id), its process namespace, its number there and its start
time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Life(Enum):
    """The states of an owner, as far as this process can tell."""

    runs = "runs"
    dead = "dead"
    unknown = "unknown"  # on another machine or in another container


@dataclass(frozen=True)
class Owner:
    """A process that owns a lock or a temporary file.

    Attributes:
        host: The machine's name, for messages.
        namespace: A digest of boot id and process namespace, in which ``pid`` is unique.
        pid: The process number.
        start: The start time, in the kernel's ticks since boot; 0 if the system does not tell.
    """

    host: str
    namespace: str
    pid: int
    start: int

    def life(self) -> Life:
        """Returns whether the process runs or is dead, or that this cannot be told from here."""
        if self.namespace != here().namespace:
            return Life.unknown
        now = _stat(self.pid)
        if now is not None:
            runs = now.state not in "ZX" and (not self.start or now.start == self.start)
            return Life.runs if runs else Life.dead
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return Life.dead
        except (OSError, OverflowError):
            # The process is another user's, and /proc hides those of others (hidepid); or the
            # number is none that a process can have.
            return Life.unknown
        return Life.runs

    def parent(self) -> int | None:
        """Returns the number of the parent process, or None if it cannot be told."""
        now = _stat(self.pid) if self.namespace == here().namespace else None
        return None if now is None else now.parent


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    start: int


def here() -> Owner:
    """Returns this process as an owner."""
    return _here(os.getpid())  # the number is an argument, so that a fork is another owner


@functools.cache
def _here(pid: int) -> Owner:
    own = _stat(pid)
    return Owner(socket.gethostname(), _namespace(), pid, 0 if own is None else own.start)


def _namespace() -> str:
    boot = _text("/proc/sys/kernel/random/boot_id") or f"host {socket.gethostname()}"
    try:
        own = os.readlink("/proc/self/ns/pid")
    except OSError:
        own = ""
    return hashlib.sha256(f"{boot} {own}".encode()).hexdigest()[:12]


def _stat(pid: int) -> _Stat | None:
    """Reads state, parent and start time from ``/proc``; None if there is no such file."""
    text = _text(f"/proc/{pid}/stat")
    if not text:
        return None
    # The program's name is in parentheses and may hold any character.
    fields = text.rpartition(")")[2].split()
    return _Stat(fields[0], int(fields[1]), int(fields[19]))


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
