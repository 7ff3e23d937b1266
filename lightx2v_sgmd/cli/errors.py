"""Errors as the command line reports them: one line for the user, and the exit code."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import traceback
from typing import Final

import typer

from lightx2v_sgmd.cli.options import PROG
from lightx2v_sgmd.system.errors import (
    FULL_DISK,
    RunError,
    UserError,
    named_line,
    says_full_disk,
    short_line,
    short_lines,
)

_NO_MEMORY: Final = re.compile(r"not enough memory|can't allocate memory|Cannot allocate memory")
_ASKED: Final = re.compile(r"\d[\d.]* (?:bytes|[KMGT]iB)")


def explain(error: BaseException) -> tuple[list[str], int]:
    """Explains an exception: the lines for the user, and the exit code."""
    if isinstance(error, UserError):
        return short_lines(error.lines), 2
    if isinstance(error, RunError):
        return [short_line(" ".join(str(error).split()))], 1
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else PROG
        message = " ".join(error.format_message().split()).rstrip(".")
        message = message.replace(": Value error, ", ": ", 1)  # pydantic's words for a bad choice
        return [short_line(f"{message}; see {command} --help")], 2
    cause: BaseException | None = error
    while cause is not None:
        if line := _about_files(cause) or _about_memory(cause):
            return [short_line(line)], 2
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return [short_line(f"internal error: {named_line(error)}", 180)], 1


def _about_files(error: BaseException) -> str | None:
    """The message for a full disk, a missing permission and the like; None for other errors.

    Libraries with a Rust or C++ core report the disk's error as text only.
    """
    number = error.errno if isinstance(error, OSError) else None
    named = error.filename if isinstance(error, OSError) else None
    path = f"{os.fsdecode(named)}: " if isinstance(named, str | bytes) else ""
    if says_full_disk(error):
        return f"{path}{FULL_DISK}"
    if number in (errno.EACCES, errno.EPERM):
        return f"{path}permission denied; choose another path or change its permissions"
    if number == errno.EROFS:
        return f"{path}the file system is read-only; choose another path"
    if number == errno.ENAMETOOLONG:
        return f"{path}the name is too long for the file system; give a shorter one"
    if number == errno.ELOOP:
        return f"{path}is a link to itself; name the file that is meant"
    if isinstance(error, ValueError) and str(error).startswith("embedded null"):
        return "a file name holds a zero byte, which no file name may; write it without"
    if isinstance(error, ValueError) and str(error).startswith("Invalid log settings"):
        return "TORCH_LOGS in the environment is not understood by torch; unset it"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "~ means nothing here: HOME is not set; set HOME, or write the whole path"
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return "no folder for temporary files can be written; set TMPDIR to one that can"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{path}a file is in the way of a folder; choose another path or move it"
    return None


def _about_memory(error: BaseException) -> str | None:
    """The message for too little memory; None for other errors."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's; this file does not import torch
        where = "the GPU"
    elif (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text))
    ):
        where = "this machine"
    else:
        return None
    found = _ASKED.search(text)
    asked = f" (one piece of it has {found[0]})" if found else ""
    return (
        f"out of memory: this needs more than {where} has{asked}; use a smaller video or batch, "
        f"or more memory ({PROG} plan says what a job needs)"
    )


def save_traceback() -> str:
    """Writes the current traceback to a file that stays, and returns its path."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"{PROG}-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exc(file=file)
            return file.name
    except OSError:
        traceback.print_exc()
        return "the lines above"
