"""Checks of names and paths, before the work whose result would go there."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_NAME_BYTES: Final = 255
_PATH_BYTES: Final = 4000
_SPARE_BYTES: Final = 30
"""Bytes that a file's name leaves free: while the file is written it has a longer name."""


def path_problem(path: str | Path, spare: int = _SPARE_BYTES) -> str | None:
    """Describes what is wrong with a path for an output; None if nothing is.

    Args:
        path: The path.
        spare: Bytes that the last name leaves free.
    """
    text = str(path)
    if not text:
        return "is empty"
    if "\0" in text:
        return "holds a zero byte, which no file name may"
    if "\n" in text:
        return "holds a line break"
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        return _half_character(text[error.start])
    if size > _PATH_BYTES:
        return f"has {size} bytes, more than the {_PATH_BYTES} of a path"
    parts = Path(text).parts
    for index, part in enumerate(parts):
        most = _NAME_BYTES - (spare if index == len(parts) - 1 else 0)
        if len(part.encode()) > most:
            return (
                f"has the name {part[:20]}... of {len(part.encode())} bytes, more than the {most} "
                "that fit"
            )
    return None


def text_problem(text: str, most: int) -> str | None:
    """Describes what is wrong with a text that is to be embedded and saved; None if nothing is."""
    if len(text) > most:
        return f"has {len(text):,} characters, more than {most:,}"
    if "\0" in text:
        return "holds a zero byte"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return _half_character(text[error.start])
    return None


def _half_character(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # as Python keeps a byte that it could not decode
        return "is not UTF-8 text (with LANG=C, also set PYTHONUTF8=1)"
    return f"holds half a character (U+{ord(character):04X}), which is not text"
