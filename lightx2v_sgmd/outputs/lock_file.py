"""The lock file itself: what it says, whether it is a copy, and how it is read and changed."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.outputs.owner import Owner
from lightx2v_sgmd.system.errors import UserError, unreadable
from lightx2v_sgmd.untrusted.json_text import RECORD, parse_json

_MOST_BYTES: Final = 65536
_LARGEST_PID: Final = 2**31 - 1


@dataclass(frozen=True)
class LockFile:
    """A lock that was read.

    Attributes:
        content: The file's bytes.
        inode: The file's inode.
        touched: The time of the file's last change, by the file server's clock.
        saved: The parsed content; empty if it is not a lock's.
    """

    content: bytes
    inode: int
    touched: float
    saved: dict[str, Any]

    @property
    def owner(self) -> Owner | None:
        """The process that wrote the lock; None if the lock does not name it."""
        try:
            saved = self.saved
            pid, start = int(saved["pid"]), int(saved["start"])
            found = Owner(str(saved["host"]), str(saved["place"]), pid, start)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return found if 0 < pid <= _LARGEST_PID else None

    def describe(self) -> str:
        """Describes the owner for a message."""
        owner = self.owner
        if owner is None:
            return "a process that it does not name"
        return f"pid {owner.pid} on {owner.host}, since {self.saved.get('since')}"


def lock_content(owner: Owner, command: str, file: Path, handle: int) -> bytes:
    """Returns the content of a new lock.

    Args:
        owner: The process that takes the lock.
        command: The command that it runs.
        file: The lock's path.
        handle: The open temporary file that will become the lock.
    """
    saved = {
        "format_version": 1,
        "command": command,
        "host": owner.host,
        "place": owner.namespace,
        "pid": owner.pid,
        "start": owner.start,
        "parent": os.getppid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "path": os.fspath(file.absolute()),
        "inode": os.fstat(handle).st_ino,
        "token": secrets.token_hex(16),
        **_slurm(),
    }
    return (json.dumps(saved, indent=1) + "\n").encode()


def _slurm() -> dict[str, str]:
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
    return {name: os.environ[name] for name in names if name in os.environ}


def is_restarted(saved: dict[str, Any]) -> bool:
    """Returns True if an earlier start of this Slurm job wrote the lock: that start has ended."""
    ours = _slurm()
    if "SLURM_JOB_ID" not in ours or saved.get("SLURM_JOB_ID") != ours["SLURM_JOB_ID"]:
        return False
    try:
        before = int(saved.get("SLURM_RESTART_COUNT", 0))
        return int(ours.get("SLURM_RESTART_COUNT", 0)) > before
    except (TypeError, ValueError, OverflowError):
        return False


def is_copy(found: LockFile, file: Path) -> bool:
    """Returns True if a lock came with a copied folder: the original lock still exists."""
    original = found.saved.get("path")
    if found.inode == found.saved.get("inode") or not isinstance(original, str):
        return False
    other = read_lock(Path(original))
    if other is None or other.content != found.content:
        return False
    with suppress(OSError):
        return not os.path.samefile(original, file)
    return False


def read_lock(file: Path) -> LockFile | None:
    """Reads a lock; returns None if there is none.

    Raises:
        UserError: the path is no lock, or it cannot be read.
    """
    try:
        # Opened, not only looked at: that is what makes a network file system ask its server.
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(file, error) from error
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{file}: is not a file, as a lock is; move it away")
        content = os.read(handle, _MOST_BYTES)
    finally:
        os.close(handle)
    try:
        saved = parse_json(content, RECORD)
    except ValueError:
        saved = {}
    return LockFile(content, about.st_ino, about.st_mtime, saved if isinstance(saved, dict) else {})


@contextmanager
def changing_locks(folder: Path) -> Iterator[None]:
    """Lets the processes of this machine change a folder's locks one after the other.

    This only helps: if the file system has no such lock, or another process holds it for more than
    a second, the block runs all the same, so a lock is read again after it was renamed.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(handle)
