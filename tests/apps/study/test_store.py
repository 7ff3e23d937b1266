"""The database of votes: all that was accepted is in it, and files of others are left alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.study.store import StoreFull, VoteStore, is_database, read_rows
from lightx2v_sgmd.apps.study.votes import parse_submission
from lightx2v_sgmd.system.errors import UserError
from tests.apps.study.conftest import Made, submission_of


def test_submissions_stay_in_the_order_they_came_and_a_new_server_goes_on(
    made: Made, tmp_path: Path
) -> None:
    file = tmp_path / "votes.sqlite"
    given = [submission_of(made.key, name, {"motion": "a"}) for name in ("anna", "ben", "anna")]
    for count, submission in enumerate(given, start=1):
        with closing(VoteStore(file)) as store:
            assert store.add(submission) == count
    assert is_database(file)
    assert [parse_submission(body, made.key) for body in read_rows(file)] == given


def test_it_does_not_grow_without_end(made: Made, tmp_path: Path) -> None:
    with closing(VoteStore(tmp_path / "votes.sqlite", most=1)) as store:
        store.add(submission_of(made.key, "anna", {}))
        with pytest.raises(StoreFull):
            store.add(submission_of(made.key, "ben", {}))


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("mine")
    with pytest.raises(UserError, match="not a database of votes"):
        VoteStore(text)
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE mine (x)")
        db.commit()
    before = other.read_bytes()
    with pytest.raises(UserError, match="something else"):
        VoteStore(other)
    with pytest.raises(UserError, match="something else"):
        list(read_rows(other))
    assert other.read_bytes() == before and text.read_text() == "mine"
