"""Waiting for DeepSpeed's compiled operations while another process builds them.

DeepSpeed compiles operations at their first use, one process at a time: the others wait until a
lock file is gone. A process that is killed while it compiles leaves that file behind, and everyone
after it waits for ever, without a word.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lightx2v_sgmd.system.console import duration, note

NOTE_AFTER_S = 10.0
"""Seconds of waiting after which the lock is named."""


@contextmanager
def waits_named() -> Iterator[None]:
    """Inside, a wait for a build prints the lock's path and age, once, and how to end the wait."""
    from torch.utils import cpp_extension

    extensions: Any = cpp_extension
    usual: Any = extensions.FileBaton

    class NamedBaton(usual):  # type: ignore[misc]
        def wait(self) -> None:
            timer = threading.Timer(NOTE_AFTER_S, _name, [self.lock_file_path])
            timer.daemon = True
            timer.start()
            try:
                super().wait()
            finally:
                timer.cancel()

    extensions.FileBaton = NamedBaton
    try:
        yield
    finally:
        extensions.FileBaton = usual


def _name(lock: str) -> None:
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return  # one line for each machine
    with suppress(OSError):  # the build has ended
        age = duration(max(0.0, time.time() - os.stat(lock).st_mtime))
        note(
            f"waiting for another process to build a part of DeepSpeed: {lock} is {age} old; if no "
            "such build is running, because it was killed, remove that file"
        )
