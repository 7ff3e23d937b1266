"""Files that a user or a stranger names, opened without waiting and read within limits."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from lightx2v_sgmd.system.errors import UserError, unreadable


def open_file(path: Path) -> BufferedReader:
    """Opens a file for reading; refuses pipes and devices, which may never give or end their data.

    Raises:
        UserError: the path is a pipe, a socket or a device.
        OSError: the file is missing, a folder, or may not be read.
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
    """Reads a file, or its first ``most + 1`` bytes if it is larger than ``most``.

    Raises:
        UserError: the path is a pipe, a socket or a device.
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        return file.read(most + 1)


def read_limited(path: Path, most: int) -> bytes:
    """Reads a file that may have at most ``most`` bytes.

    Raises:
        UserError: the file is missing, a folder, too large or unreadable.
    """
    try:
        content = read_file(path, most)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name another one") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a file; name a file") from None
    except OSError as error:
        raise unreadable(path, error) from None
    if len(content) > most:
        raise UserError(f"{path}: is larger than the {most:,} bytes that are read; split it")
    return content


def read_text(path: Path, most: int) -> str:
    """Reads a UTF-8 text file, with or without a byte order mark.

    Args:
        path: The file.
        most: The size in bytes that the file may have.

    Raises:
        UserError: the file is missing, a folder, too large, unreadable or not UTF-8.
    """
    return decode_text(read_limited(path, most), path)


def decode_text(content: bytes, path: Path) -> str:
    """Decodes a file's content as UTF-8 text.

    Raises:
        UserError: the content is not UTF-8; the message names the line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8 text; "
            "save the file as UTF-8"
        ) from None


def _no_file(path: Path) -> UserError:
    return UserError(f"{path}: is a pipe or a device, not a file; save it as a file and name that")
