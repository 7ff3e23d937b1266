"""Errors that the user can correct, and the length of their messages.

A message is one line that names the key or file, the value, the reason and the remedy:
``parallel.sequence: 8 does not divide the 12 attention heads of wan2.1-t2v-1.3b; use
1, 2, 3, 4, 6 or 12``. The command line prints it to stderr and exits with 2.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from typing import Final

LINE: Final = 280
"""Most characters of a message; with ``error:`` and a rank in front a line has at most 300."""
_LINES: Final = 20
_WORD: Final = 80


class UserError(ValueError):
    """A mistake in the user's input: a job, a file or an option.

    Args:
        lines: The message; several, if several mistakes were found at once.

    Attributes:
        lines: The same. Each is shown as one line: a name in it may hold a newline, which is then
            escaped as other control characters are.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines

    def __str__(self) -> str:
        """The messages, one below the other."""
        return "\n".join(map(str, self.lines))


class RunError(RuntimeError):
    """A failure from outside the job: a process that died or hangs, or a machine that is gone.

    The message has one line, like that of a UserError, but the exit code is 1.
    """


def short_lines(lines: Sequence[str]) -> list[str]:
    """Cuts messages for the terminal: at most 20 of them, each made by ``short_line``."""
    lines = [line for line in lines if line.strip()] or [""]
    shown = [short_line(line) for line in lines[:_LINES]]
    if len(lines) > _LINES:
        shown.append(f"... and {len(lines) - _LINES} more mistakes; mend these first")
    return shown


def short_line(text: str, most: int = LINE) -> str:
    """Cuts a line to at most ``most`` characters; its beginning and its remedy stay.

    A message may quote a stranger's file, so characters that a terminal would obey are escaped.
    """
    if len(text) > 4 * most:
        text = _middle_cut(text, 4 * most, 2 * most)
    text = escaped(text)
    if len(text) > most:
        text = re.sub(rf"\S{{{_WORD},}}", _short_word, text)
    if len(text) > most:
        remedy = len(text) - text.rfind("; ")
        text = _middle_cut(text, most, remedy if remedy <= most // 2 else most // 3)
    return text


def escaped(text: str) -> str:
    """Writes every character that is not printable, newlines included, as Python would."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _short_word(found: re.Match[str]) -> str:
    return _middle_cut(found[0], _WORD - 20, _WORD // 2 - 10)


def _middle_cut(text: str, most: int, tail: int) -> str:
    return f"{text[: most - tail - 5]} ... {text[len(text) - tail :]}"


FULL_DISK: Final = "the disk is full; free some space, then run the same command again"
"""The message about a full disk."""
_FULL_TEXTS: Final = ("No space left on device", "database or disk is full")


def is_full_disk(error: BaseException | None) -> bool:
    """Returns True if an error, or one that caused it, is that of a full disk."""
    while error is not None:
        if says_full_disk(error):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def says_full_disk(error: BaseException) -> bool:
    """Returns True if an error itself is that of a full disk.

    Libraries with a Rust or C++ core report the disk's error as text only, and so does SQLite.
    """
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or any(t in str(error) for t in _FULL_TEXTS)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the error's name if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def named_line(error: BaseException) -> str:
    """Returns an error's name and the first line of its message; the name alone if it has none."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def with_remedy(text: str, remedy: str) -> str:
    """Ends a message with a remedy, unless it has one: that stands behind its last ``; ``."""
    return text if "; " in text else f"{text}; {remedy}"


def unreadable(path: object, error: OSError) -> UserError:
    """The error for a file that cannot be read."""
    reason = error.strerror or type(error).__name__
    return UserError(f"{path}: cannot be read ({reason}); check its path, permissions and disk")


def shortened(text: str, most: int = 100) -> str:
    """Cuts a text to about ``most`` characters for a message: a name may have megabytes."""
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text)} characters)"


def joined(values: Sequence[object], most: int = 8) -> str:
    """Joins values with commas; of many values, the first ones and their number."""
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown}, ... ({len(values)} of them)"
