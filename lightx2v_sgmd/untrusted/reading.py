"""Files that a user or a stranger names, opened without waiting and read within limits."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from lightx2v_sgmd.system.errors import UserError


def open_file(path: Path) -> BufferedReader:
    """A file, opened for reading; a pipe or a device could be waited for or read without end.

    Raises:
        UserError: it is a pipe, a socket or a device.
        OSError: it is missing, a folder, or may not be read.
    """
    if stat.S_ISSOCK(path.stat().st_mode):
        raise _no_file(path)
    # Without O_NONBLOCK, opening a pipe waits for whoever writes into it.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise _no_file(path)
    return file


def read_file(path: Path, most: int) -> bytes:
    """A file's content, or its first ``most + 1`` bytes if it is larger than ``most``.

    Raises:
        UserError: it is a pipe, a socket or a device.
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        return file.read(most + 1)


def _no_file(path: Path) -> UserError:
    return UserError(f"{path}: is a pipe or a device, not a file; save it as a file and name that")
