"""The database of votes: all that was accepted is in it, and files of others are left alone."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.study.store import StoreFull, VoteStore, is_database, read_rows
from lightx2v_sgmd.apps.study.votes import parse_submission
from lightx2v_sgmd.system.errors import UserError
from tests.apps.study.conftest import MadeStudy, submission_of


def test_submissions_stay_in_the_order_they_came_and_a_new_server_goes_on(
    made: MadeStudy, tmp_path: Path
) -> None:
    file = tmp_path / "votes.sqlite"
    given = [submission_of(made.key, name, {"motion": "a"}) for name in ("anna", "ben", "anna")]
    for count, submission in enumerate(given, start=1):
        with closing(VoteStore(file)) as store:
            assert store.add(submission) == count
    assert is_database(file)
    assert [parse_submission(body, made.key) for body in read_rows(file)] == given


def test_it_does_not_grow_without_end(made: MadeStudy, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON submissions BEGIN DELETE FROM submissions; END",
        "CREATE TABLE more (x)",
        "CREATE INDEX i ON submissions (abs(number))",
    ],
)
def test_a_database_with_other_parts_is_neither_read_nor_continued(
    made: MadeStudy, tmp_path: Path, statement: str
) -> None:
    file = tmp_path / "votes.sqlite"
    with closing(VoteStore(file)) as store:
        store.add(submission_of(made.key, "anna", {"motion": "a"}))
    with closing(sqlite3.connect(file)) as db:
        db.execute(statement)
        db.commit()
    before = file.read_bytes()
    with pytest.raises(UserError, match="has other parts than a database of votes"):
        VoteStore(file)
    with pytest.raises(UserError, match="has other parts than a database of votes"):
        list(read_rows(file))
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_table_that_never_ends_is_not_read(tmp_path: Path) -> None:
    from tools.fuzzing.records import seeds

    file = tmp_path / "votes.sqlite"
    file.write_bytes(seeds()["vote_database"][1])
    with pytest.raises(UserError, match="has other parts than a database of votes"):
        list(read_rows(file))
    with pytest.raises(UserError, match="has other parts than a database of votes"):
        VoteStore(file)


def test_what_one_reads_of_a_database_has_limits(
    made: MadeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "votes.sqlite"
    with closing(VoteStore(file)) as store:
        for name in ("anna", "ben"):
            store.add(submission_of(made.key, name, {"motion": "a"}))
    with monkeypatch.context() as limited:
        limited.setattr("lightx2v_sgmd.apps.study.store.MOST", 1)
        with pytest.raises(UserError, match="has 2 submissions, and at most 1 are read"):
            list(read_rows(file))
    with closing(sqlite3.connect(file)) as db:
        db.execute("UPDATE submissions SET body = zeroblob(100000000)")
        db.commit()
    with pytest.raises(sqlite3.DataError, match="too big"):
        list(read_rows(file))


def test_a_database_that_a_killed_server_left_empty_is_made_again(tmp_path: Path) -> None:
    file = tmp_path / "votes.sqlite"
    file.touch()
    with closing(VoteStore(file)):
        pass
    assert list(read_rows(file)) == []
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe or a device"):
        is_database(tmp_path / "pipe")
