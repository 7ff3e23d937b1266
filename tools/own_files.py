"""Writes the reports and figures of tools, and replaces only what a tool wrote itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from lightx2v_sgmd.outputs import appearing
from lightx2v_sgmd.untrusted.reading import read_file

FIGURE: Final = "atplotlib"
"""Text that stands in every figure of Matplotlib's, in its metadata."""
_MOST_BYTES: Final = 100_000_000


def check_own(path: Path, mark: str) -> None:
    """Ends the program with exit code 2 if a file is there that does not hold a tool's mark.

    Args:
        path: The file that is to be written.
        mark: Text that stands in everything that the tool writes there, such as its module's name.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file():
        _refuse(f"{path}: is not a file, so no report is written there; choose another")
    if mark.encode() not in read_file(path, _MOST_BYTES):
        _refuse(
            f"{path}: was not written by this tool (it does not say {mark!r}) and is not replaced; "
            "move it or choose another file"
        )


def check_new(path: Path) -> None:
    """Ends the program with exit code 2 if an output that is never replaced is there already.

    Args:
        path: A file, or a folder, which may be there if it is empty.
    """
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        _refuse(f"{path}: is there already and is not replaced; move it or name a new one")


@contextmanager
def replacing_own(path: Path, mark: str) -> Iterator[Path]:
    """Gives a path to write to, which becomes ``path`` in one step; checks as ``check_own``."""
    check_own(path, mark)
    with appearing(path, suffix=path.suffix) as temporary:
        yield temporary
        check_own(path, mark)


def write_own(path: Path, text: str, mark: str) -> None:
    """Writes a text file that holds the tool's mark; checks as ``check_own``."""
    assert mark in text, f"{path}: the text does not hold {mark!r}"
    with replacing_own(path, mark) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
