from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from infer.serve.jobs import JobStore
from infer.serve.queue_check import check_queue
from infer.serve.results import Results
from lightx2v_sgmd.system.errors import UserError
from tests.infer.serve.standin import WANTED


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """The queue of a server that has a job."""
    with closing(JobStore(tmp_path / "queue.sqlite")) as store:
        store.add(WANTED, 10)
    return tmp_path / "queue.sqlite"


def test_a_queue_passes_open_or_closed(tmp_path: Path, queue: Path) -> None:
    check_queue(queue)
    check_queue(tmp_path / "none.sqlite")
    (tmp_path / "empty.sqlite").touch()
    check_queue(tmp_path / "empty.sqlite")
    killed = tmp_path / "killed.sqlite"
    with closing(sqlite3.connect(killed)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    check_queue(killed)


@pytest.mark.parametrize(("version", "later"), [(1, ("image", "lora")), (2, ("image",))])
def test_a_queue_of_before_passes_and_is_brought_up_to_date(
    queue: Path, version: int, later: tuple[str, ...]
) -> None:
    """Jobs had no LoRA in version 1, and no image in version 2."""
    with closing(sqlite3.connect(queue)) as db:
        for column in later:
            db.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
        db.execute(f"PRAGMA user_version = {version}")
    check_queue(queue)
    with closing(JobStore(queue)) as store:
        jobs = store.page(10, None, True)[0]
        assert [(job.lora, job.image) for job in jobs] == [(None, None)]
    check_queue(queue)


def run(*statements: str) -> Callable[[Path], None]:
    def change(queue: Path) -> None:
        with closing(sqlite3.connect(queue)) as db:
            for statement in statements:
                db.execute(statement)
            db.commit()

    return change


def replaced_by_somebodys(*statements: str) -> Callable[[Path], None]:
    def change(queue: Path) -> None:
        queue.unlink()
        run("CREATE TABLE places (url TEXT)", *statements)(queue)

    return change


def replaced_by_a_link(queue: Path) -> None:
    queue.rename(queue.with_name("mine.sqlite"))
    queue.symlink_to("mine.sqlite")


def replaced_by_a_pipe(queue: Path) -> None:
    queue.unlink()
    os.mkfifo(queue)


def replaced_by_text(queue: Path) -> None:
    queue.write_bytes(b"x" * 10_000)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
HOSTILE: dict[str, Callable[[Path], None]] = {
    "somebody's database": replaced_by_somebodys(),
    "somebody's database of version 1": replaced_by_somebodys("PRAGMA user_version = 1"),
    "no database": replaced_by_text,
    "cut off": lambda queue: os.truncate(queue, 5_000),
    "a link": replaced_by_a_link,
    "a pipe": replaced_by_a_pipe,
    "a link as the log": lambda queue: Path(f"{queue}-wal").symlink_to("/etc/hostname"),
    "a trigger": run(f"CREATE TRIGGER t AFTER UPDATE ON jobs BEGIN {ENDLESS}; END"),
    "a view": run(f"CREATE VIEW v AS {ENDLESS}"),
    "a view instead of a table": run(
        "ALTER TABLE counters RENAME TO others",
        "CREATE VIEW counters AS SELECT * FROM others",
    ),
    "a check": run(
        "DROP TABLE counters",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value REAL CHECK (randomblob(9) != 1))",
    ),
    "an index that computes": run("CREATE INDEX i ON jobs (length(prompt))"),
    "another table": run("CREATE TABLE more (x TEXT)"),
    "a name that leads out": run("UPDATE jobs SET id = '../../holiday'"),
    "a name that is no text": run("UPDATE jobs SET id = x'00'"),
    "a number that is none": run("UPDATE jobs SET height = 'tall'"),
    "a LoRA that is no text": run("UPDATE jobs SET lora = x'00'"),
    "a LoRA without end": run("UPDATE jobs SET lora = printf('%2000d', 1)"),
    "a prompt without end": run("UPDATE jobs SET prompt = printf('%2000000d', 1)"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_queue_is_refused_unchanged(queue: Path, kind: str) -> None:
    HOSTILE[kind](queue)
    before = {p: p.read_bytes() for p in queue.parent.iterdir() if p.is_file()}
    with pytest.raises(UserError, match=r"choose another --data") as caught:
        check_queue(queue)
    assert "\n" not in str(caught.value)
    after = {p: p.read_bytes() for p in queue.parent.iterdir() if p.is_file()}
    assert after == before


def test_no_file_outside_the_folder_is_a_video(tmp_path: Path) -> None:
    results = Results(tmp_path / "served")
    mine = tmp_path / "holiday.mp4"
    mine.touch()
    for name in ("../../holiday", "/etc/passwd", "video_0", ""):
        with pytest.raises(UserError, match="choose another --data"):
            results.remove(name)
    assert mine.exists()
