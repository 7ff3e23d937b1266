"""SQLite databases that may come from strangers."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

UNREADABLE_DATABASE: Final = (sqlite3.Error, UnicodeDecodeError)
"""The errors of sqlite3 for a damaged database: they quote the file, whatever is in it."""


def open_database(file: Path, how: str = "mode=ro") -> sqlite3.Connection:
    """Opens a database for reading; views and triggers in it may not call what has effects.

    Args:
        file: The database.
        how: ``mode=ro``, or ``immutable=1``: as it is on the disk, without what a writer that was
            killed left beside it.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    db = sqlite3.connect(f"{file.absolute().as_uri()}?{how}", uri=True)
    db.execute("PRAGMA trusted_schema = OFF")
    return db
