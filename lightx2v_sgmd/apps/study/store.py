"""Votes on disk: an SQLite database to which submissions are added and from which none goes."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from lightx2v_sgmd.apps.study.votes import Submission
from lightx2v_sgmd.system.errors import UserError

_APPLICATION: Final = 0x5347_6D64
"""Marks the database as ours, in SQLite's header."""
_VERSION: Final = 1
_HEADER: Final = b"SQLite format 3\x00"
_TABLE: Final = """
CREATE TABLE submissions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    received_at REAL NOT NULL,
    study TEXT NOT NULL,
    rater TEXT NOT NULL,
    body TEXT NOT NULL
)
"""


class StoreFull(Exception):
    """The database has as many submissions as it may have."""


class VoteStore:
    """The database, for the threads of one process.

    Args:
        file: The database; it is made if it does not exist.
        most: The most submissions.

    Raises:
        UserError: the file is something else.
    """

    def __init__(self, file: Path, most: int = 100_000) -> None:
        self.most = most
        self._lock = threading.Lock()
        if file.exists() and file.stat().st_size and not is_database(file):
            raise UserError(f"--votes: {file} is not a database of votes; name a new file")
        try:
            self._db = sqlite3.connect(file, timeout=60, check_same_thread=False)
            self._db.execute("PRAGMA synchronous = FULL")
            with self._db as db:
                application, version = (
                    db.execute(f"PRAGMA {name}").fetchone()[0]
                    for name in ("application_id", "user_version")
                )
                tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                if (application, version, tables) == (0, 0, 0):
                    db.execute(_TABLE)
                    db.execute(f"PRAGMA application_id = {_APPLICATION}")
                    db.execute(f"PRAGMA user_version = {_VERSION}")
                elif (application, version) != (_APPLICATION, _VERSION):
                    raise UserError(
                        f"--votes: {file} is a database of something else, or of another version; "
                        "name a new file"
                    )
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"--votes: {file} cannot be opened as a database ({error}); name another file"
            ) from error

    def add(self, submission: Submission) -> int:
        """Adds a submission, which is on the disk when this returns.

        Returns:
            The number of submissions.

        Raises:
            StoreFull: there are too many.
            sqlite3.Error: the disk cannot be written.
        """
        row = (time.time(), submission.study, submission.rater, submission.model_dump_json())
        with self._lock, self._db as db:
            count: int = db.execute("SELECT count(*) FROM submissions").fetchone()[0]
            if count >= self.most:
                raise StoreFull(f"{count:,} submissions are kept")
            db.execute(
                "INSERT INTO submissions (received_at, study, rater, body) VALUES (?, ?, ?, ?)", row
            )
            return count + 1

    def close(self) -> None:
        """Closes the database."""
        self._db.close()


def is_database(file: Path) -> bool:
    """True if a file begins as SQLite's do."""
    with file.open("rb") as opened:
        return opened.read(len(_HEADER)) == _HEADER


def read_rows(file: Path) -> Iterator[str]:
    """The bodies of all submissions in a database, the oldest first.

    Raises:
        UserError: it is a database of something else.
        sqlite3.Error: it cannot be read.
    """
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db:
        if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise UserError(f"{file}: is a database of something else; name one of `study collect`")
        for (body,) in db.execute("SELECT body FROM submissions ORDER BY number"):
            yield str(body)
