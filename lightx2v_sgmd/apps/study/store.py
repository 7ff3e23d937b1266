"""Votes on disk: an SQLite database to which submissions are added and from which none goes."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from lightx2v_sgmd.apps.study.votes import SUBMISSION, Submission
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.databases import UNREADABLE_DATABASE, open_database
from lightx2v_sgmd.untrusted.reading import open_file

MOST: Final = 100_000
"""The most submissions that are kept and read."""
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
_SEQUENCE: Final = ("table", "sqlite_sequence", "CREATE TABLE sqlite_sequence(name,seq)")
"""The table in which SQLite keeps the last number that it gave."""
_MARKS: Final = ("application_id", "user_version")


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

    def __init__(self, file: Path, most: int = MOST) -> None:
        self.most = most
        self._lock = threading.Lock()
        if file.exists() and file.stat().st_size and not is_database(file):
            raise UserError(f"--votes: {file} is not a database of votes; name a new file")
        try:
            if file.exists() and file.stat().st_size:
                # As it is on the disk, without what a killed writer left beside it: another
                # program's database is not changed by being looked at.
                with closing(_opened(file, "immutable=1")) as db:
                    _refuse(file, db)
            self._db = sqlite3.connect(file, timeout=60, check_same_thread=False)
            self._db.execute("PRAGMA trusted_schema = OFF")
            self._db.execute("PRAGMA synchronous = FULL")
            if _is_empty(self._db):
                # In one transaction, so that a kill leaves a database of votes or an empty one.
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute(_TABLE)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
                self._db.commit()
            _refuse(file, self._db)
        except UNREADABLE_DATABASE as error:
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
    """True if a file begins as SQLite's do.

    Raises:
        UserError: the path is a pipe or a device.
    """
    with open_file(file) as opened:
        return opened.read(len(_HEADER)) == _HEADER


def read_rows(file: Path) -> Iterator[str]:
    """The bodies of all submissions in a database, the oldest first.

    Raises:
        UserError: it is a database of something else, or has too many submissions.
        sqlite3.Error, UnicodeDecodeError: it cannot be read, or a submission is too long.
    """
    with closing(_opened(file, "mode=ro")) as db:
        if problem := _problem(db):
            raise UserError(f"{file}: {problem}; name one of `study collect`")
        count = db.execute("SELECT count(*) FROM submissions").fetchone()[0]
        if count > MOST:
            raise UserError(
                f"{file}: has {count:,} submissions, and at most {MOST:,} are read; split it"
            )
        for (body,) in db.execute("SELECT body FROM submissions ORDER BY number"):
            yield str(body)


def _opened(file: Path, how: str) -> sqlite3.Connection:
    """A database that may be a stranger's, opened for reading, whose values have a limit."""
    db = open_database(file, how)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * SUBMISSION.size)
    return db


def _is_empty(db: sqlite3.Connection) -> bool:
    marks = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in _MARKS]
    return marks == [0, 0] and not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()


def _refuse(file: Path, db: sqlite3.Connection) -> None:
    if not _is_empty(db) and (problem := _problem(db)):
        raise UserError(f"--votes: {file} {problem}; name a new file")


def _problem(db: sqlite3.Connection) -> str | None:
    """Says that a database is another program's, or would compute something when it is used.

    A view in the table's place may never end, and a trigger may change what is added.
    """
    if [db.execute(f"PRAGMA {name}").fetchone()[0] for name in _MARKS] != [_APPLICATION, _VERSION]:
        return "is a database of something else, or of another version"
    parts = db.execute("SELECT type, name, sql FROM sqlite_master LIMIT 3").fetchall()
    if set(parts) != {("table", "submissions", _TABLE.strip()), _SEQUENCE}:
        return "has other parts than a database of votes, and they might run something"
    return None
