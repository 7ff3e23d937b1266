from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from infer.serve.jobs import MOST_DEATHS, JobStore, QueueFull
from lightx2v_sgmd.system.errors import UserError, is_full_disk
from tests.infer.serve.standin import WANTED


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "queue.sqlite")


def test_an_accepted_job_is_on_the_disk(tmp_path: Path, store: JobStore) -> None:
    job = store.add(replace(WANTED, seed=2**63 - 1, prompt="ein Bär 🐻"), 10)
    assert JobStore(tmp_path / "queue.sqlite").get(job.id) == job
    assert (job.status, job.seed, job.prompt) == ("queued", 2**63 - 1, "ein Bär 🐻")
    mode = sqlite3.connect(tmp_path / "queue.sqlite").execute("PRAGMA journal_mode").fetchone()
    assert mode == ("wal",)


def test_a_full_queue_refuses(store: JobStore) -> None:
    store.add(WANTED, 2)
    store.add(WANTED, 2)
    with pytest.raises(QueueFull):
        store.add(WANTED, 2)
    store.claim("w", lambda job: 1)
    store.add(WANTED, 2)


def test_the_oldest_job_comes_first_with_others_of_its_size(store: JobStore) -> None:
    small = [store.add(WANTED, 10) for _ in range(2)]
    large = store.add(replace(WANTED, num_frames=17), 10)
    small += [store.add(WANTED, 10) for _ in range(2)]
    batches = [[job.id for job in store.claim("w", lambda size: 3)] for _ in range(4)]
    assert batches == [[j.id for j in small[:3]], [large.id], [small[3].id], []]


def test_jobs_with_an_image_are_made_apart_from_those_without(store: JobStore) -> None:
    images: list[str | None] = [None, "a" * 64, None, "b" * 64]
    names = [store.add(replace(WANTED, image=image), 10).id for image in images]
    batches = [[job.id for job in store.claim("w", lambda size: 3)] for _ in range(3)]
    assert batches == [[names[0], names[2]], [names[1], names[3]], []]


def test_a_job_belongs_to_its_worker_alone(store: JobStore) -> None:
    job = store.add(WANTED, 10)
    store.claim("old", lambda job: 1)
    store.release(None, died=False)
    assert store.advance("old", [job.id], 50) == set()
    assert not store.complete("old", job.id, 1.0, 5)
    store.fail("old", job.id, "no")
    store.claim("new", lambda job: 1)
    assert store.advance("new", [job.id], 50) == {job.id}
    assert store.complete("new", job.id, 1.0, 5)
    found = store.get(job.id)
    assert found is not None and (found.status, found.progress) == ("completed", 100)


def test_a_job_that_kills_workers_is_tried_alone_and_then_failed(store: JobStore) -> None:
    bad, good = store.add(WANTED, 10), store.add(WANTED, 10)
    assert len(store.claim("w0", lambda size: 8)) == 2
    store.release("w0", died=True)
    for attempt in range(1, MOST_DEATHS):
        assert [job.id for job in store.claim(f"w{attempt}", lambda size: 8)] == [bad.id]
        store.release(f"w{attempt}", died=True)
    found = store.get(bad.id)
    assert found is not None and found.status == "failed" and "died 3 times" in str(found.error)
    assert [job.id for job in store.claim("last", lambda size: 8)] == [good.id]


def test_a_restart_of_the_server_is_not_counted_against_a_job(store: JobStore) -> None:
    job = store.add(WANTED, 10)
    for _ in range(2 * MOST_DEATHS):
        assert store.claim("w", lambda job: 1)
        store.release(None, died=False)
    found = store.get(job.id)
    assert found is not None and (found.status, found.deaths) == ("queued", 0)


def test_old_and_large_results_are_removed(store: JobStore) -> None:
    jobs = [store.add(WANTED, 10) for _ in range(4)]
    waiting = store.add(replace(WANTED, num_frames=17), 10)
    for job in store.claim("w", lambda job: 4):
        store.complete("w", job.id, 1.0, 100)
    assert store.remove_finished(before=0, most_bytes=250) == [jobs[1].id, jobs[0].id]
    assert set(store.remove_finished(before=2**40, most_bytes=1e9)) == {jobs[2].id, jobs[3].id}
    assert store.names() == {waiting.id}
    assert store.counters()["completed"] == 4


@pytest.mark.parametrize("then", [0.0, 2.0**33])
def test_a_clock_that_was_wrong_removes_no_video_early(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, then: float
) -> None:
    """A machine without a battery starts in 1970, until a time server tells it the date."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: then)
    job = store.add(WANTED, 10)
    store.claim("w", lambda job: 1)
    store.complete("w", job.id, 1.0, 100)
    assert store.remove_finished(before=time.time() - 3600, most_bytes=1e9) == []
    monkeypatch.setattr(time, "time", lambda: now)
    assert store.remove_finished(before=now - 3600, most_bytes=1e9) == []
    assert store.remove_finished(before=2.0**34, most_bytes=1e9) == [job.id]


def test_pages_go_through_all(store: JobStore) -> None:
    names = [store.add(WANTED, 10).id for _ in range(5)]
    first, more = store.page(2, None, newest_first=True)
    assert ([job.id for job in first], more) == ([names[4], names[3]], True)
    rest, more = store.page(3, first[-1].id, newest_first=True)
    assert ([job.id for job in rest], more) == (names[2::-1], False)
    assert [job.id for job in store.page(9, names[1], newest_first=False)[0]] == names[2:]
    with pytest.raises(KeyError):
        store.page(2, "video_0", newest_first=True)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_text("no database" * 1000)
    with pytest.raises(UserError, match="another --data"):
        JobStore(tmp_path / "x.sqlite")
    with sqlite3.connect(tmp_path / "y.sqlite") as db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(UserError, match="another version"):
        JobStore(tmp_path / "y.sqlite")


def test_jobs_with_one_lora_are_made_together(store: JobStore) -> None:
    loras = (None, "a", None, "a", "b")
    jobs = [store.add(replace(WANTED, lora=lora), 10) for lora in loras]
    batches = [[job.id for job in store.claim("w", lambda size: 8)] for _ in range(3)]
    assert batches == [[jobs[0].id, jobs[2].id], [jobs[1].id, jobs[3].id], [jobs[4].id]]
    found = store.get(jobs[4].id)
    assert found is not None and found.lora == "b"


@pytest.mark.parametrize(("version", "later"), [(1, ("image", "lora")), (2, ("image",))])
def test_a_queue_of_a_version_before_goes_on(
    tmp_path: Path, version: int, later: tuple[str, ...]
) -> None:
    file = tmp_path / "queue.sqlite"
    before = JobStore(file)
    job = before.add(WANTED, 10)
    before.close()
    with sqlite3.connect(file) as db:
        for column in later:
            db.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    for _ in range(2):  # the change is made once
        store = JobStore(file)
        assert store.get(job.id) == job
        store.close()


def test_a_full_disk_refuses_a_job_and_leaves_the_queue_usable(
    tmp_path: Path, store: JobStore
) -> None:
    """SQLite says the same of a file that may have no more pages."""
    accepted = store.add(WANTED, 1000)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="database or disk is full") as caught:
        for _ in range(100):
            store.add(replace(WANTED, prompt="x" * 3_000), 1000)
    assert is_full_disk(caught.value)
    assert store.get(accepted.id) == accepted  # reading goes on
    store._db.execute(f"PRAGMA max_page_count = {pages + 100}")
    assert store.get(store.add(WANTED, 1000).id) is not None
    assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


FULL = """
mount -t tmpfs -o size=400k tmpfs "$1" || exit 77
exec "$2" -m tests.infer.serve.full "$1"
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full_loses_no_accepted_job(tmp_path: Path) -> None:
    """A file system that fills up, mounted where only this test sees it."""
    command = ["unshare", "-rm", "sh", "-c", FULL, "sh", str(tmp_path), sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mounts without privileges here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused", "waited", "completed"], done.stderr
    assert "accepted videos wait until there is space" in done.stderr
    assert "Traceback" not in done.stderr
