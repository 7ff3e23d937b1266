"""Waiting for DeepSpeed's compiled operations while another process builds them.

DeepSpeed compiles operations at their first use, one process at a time: the others wait until a
lock file is gone. A process that is killed while it compiles leaves that file behind, and everyone
after it would wait for ever, without a word. So our own locks say who holds them, and a lock whose
owner is dead is removed. One that does not say so, or is from another machine, is named.

PyTorch 2.14 locks the file through the system instead, which ends a dead process's lock by itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightx2v_sgmd.outputs.lock_file import changing_locks, lock_content, read_lock
from lightx2v_sgmd.outputs.owner import Life, here
from lightx2v_sgmd.system.console import duration, note
from lightx2v_sgmd.system.errors import RunError

NOTE_AFTER_S = 5.0
"""Seconds of waiting after which the lock is named."""
_POLL_S = 0.2


@contextmanager
def guarded_builds() -> Iterator[None]:
    """Inside, locks of builds name their owner, and those of dead owners are removed.

    A wait for a living or unknown owner prints the lock's path and age, once, and how to end it.
    Where PyTorch's locks end with their process, nothing changes.
    """
    from torch.utils import cpp_extension

    extensions: Any = cpp_extension
    usual: Any = getattr(extensions, "FileBaton", None)
    if usual is None:
        yield
        return

    class OwnedBaton(usual):  # type: ignore[misc]
        def try_acquire(self) -> bool:
            lock = Path(self.lock_file_path)
            if _remove_dead(lock):
                _say(f"{lock}: was left by a build that is gone, and has been removed")
            taken = bool(super().try_acquire())
            if taken:
                with suppress(OSError):  # then it names nobody, as torch's own
                    lock.write_bytes(lock_content(here(), "building", lock, self.fd))
            return taken

        def wait(self) -> None:
            lock = Path(self.lock_file_path)
            timer = threading.Timer(NOTE_AFTER_S, _name, [lock])
            timer.daemon = True
            timer.start()
            try:
                while lock.exists():
                    time.sleep(_POLL_S)
                    if _remove_dead(lock):
                        raise RunError(
                            f"{lock}: the process that built this part of DeepSpeed is gone; run "
                            "the same command again to build it"
                        )
            finally:
                timer.cancel()

    extensions.FileBaton = OwnedBaton
    try:
        yield
    finally:
        extensions.FileBaton = usual


def _remove_dead(lock: Path) -> bool:
    """Removes a lock whose owner is known to be dead; returns True if it did."""
    if not _is_dead(lock):
        return False
    with changing_locks(lock.parent), suppress(OSError):
        if _is_dead(lock):  # not one that somebody has taken meanwhile
            lock.unlink()
            return True
    return False


def _is_dead(lock: Path) -> bool:
    found = read_lock(lock)
    owner = None if found is None else found.owner
    return owner is not None and owner.life() is Life.dead


def _name(lock: Path) -> None:
    found = None
    with suppress(OSError, ValueError):
        found = read_lock(lock)
    if found is None:  # the build has ended
        return
    age = duration(max(0.0, time.time() - found.touched))
    who = "another process" if found.owner is None else found.describe()
    _say(
        f"waiting for {who} to build a part of DeepSpeed: {lock} is {age} old; if no such build is "
        "running, because it was killed, remove that file"
    )


def _say(message: str) -> None:
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # one line for each machine
        note(message)
