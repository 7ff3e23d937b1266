"""A stranger's database is read, is not written, and may not call what has effects."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lightx2v_sgmd.untrusted.databases import UNREADABLE_DATABASE, open_database


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "a name?mode=rwc.sqlite"
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("CREATE TABLE votes (body TEXT)")
        db.execute("INSERT INTO votes VALUES ('a'), (CAST(x'ff' AS TEXT))")
    return file


@pytest.mark.parametrize("how", ["mode=ro", "immutable=1"])
def test_it_is_read_and_not_written(database: Path, how: str) -> None:
    with closing(open_database(database, how)) as db:
        assert db.execute("SELECT body FROM votes LIMIT 1").fetchall() == [("a",)]
        assert db.execute("PRAGMA trusted_schema").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM votes")


def test_damage_is_one_of_the_errors_that_are_told(database: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(database.read_bytes()[:2000] + b"x" * 9000)
    for file in (database, tmp_path / "damaged", tmp_path / "none"):
        with pytest.raises(UNREADABLE_DATABASE), closing(open_database(file)) as db:
            db.execute("SELECT body FROM votes").fetchall()
