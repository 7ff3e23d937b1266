"""Which process wrote something, and whether that process still runs.

A process number says little: two containers have the same ones, and a machine uses them again. So
an owner is its machine (boot id), its process namespace, its number there and its start time.
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
    """What can be said of an owner from here."""

    runs = "runs"
    dead = "dead"
    unknown = "unknown"  # on another machine or in another container


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        host: The machine's name, for people.
        place: Digest of boot id and process namespace: where ``pid`` means something.
        pid: The process number there.
        start: When it started, in the kernel's ticks since boot; 0 if the system does not say.
    """

    host: str
    place: str
    pid: int
    start: int

    def life(self) -> Life:
        """What can be said of the process from here: it runs, it is dead, or nothing."""
        if self.place != here().place:
            return Life.unknown
        found = _stat(self.pid)
        if found is not None:
            runs = found.state not in "ZX" and (not self.start or found.start == self.start)
            return Life.runs if runs else Life.dead
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return Life.dead
        except OSError:
            # The process is another user's, and /proc hides those of others (hidepid).
            return Life.unknown
        return Life.runs

    def parent(self) -> int | None:
        """The number of the process that started it, or of the one that took its place."""
        found = _stat(self.pid) if self.place == here().place else None
        return None if found is None else found.parent


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    start: int


def here() -> Owner:
    """This process."""
    return _here(os.getpid())  # the number is an argument, so that a fork is another owner


@functools.cache
def _here(pid: int) -> Owner:
    own = _stat(pid)
    return Owner(socket.gethostname(), _place(), pid, 0 if own is None else own.start)


def _place() -> str:
    boot = _text("/proc/sys/kernel/random/boot_id") or f"host {socket.gethostname()}"
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:12]


def _stat(pid: int) -> _Stat | None:
    """State, parent and start time from ``/proc``; None where there is no such file."""
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
