"""The command of the programs that write a page of docs/reference/."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "reference"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a ``|`` in a cell is escaped, also one in code."""
    lines = ([cell.replace("|", "\\|") for cell in row] for row in (headings, *rows))
    head, *body = (f"| {' | '.join(line)} |\n" for line in lines)
    return "".join([head, f"|{'---|' * len(headings)}\n", *body])


def write(path: Path, text: str, description: str | None) -> int:
    """Writes a page, or with ``--check`` only says that it is out of date.

    Returns:
        The exit code: 1 if ``--check`` finds another text.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args().check:
        current = path.exists() and path.read_text(encoding="utf-8") == text
        if not current:
            print(f"{path} is out of date; run this without --check")
        return 0 if current else 1
    path.write_text(text, encoding="utf-8")
    return 0
