"""The queue on disk: every accepted request is a row of an SQLite database in WAL mode.

The API and the worker open it as two processes. A job is ``queued``, ``in_progress``, ``completed``
or ``failed``. Only the worker that a job is claimed by can finish it: each start of a worker has a
name of its own, and what a dead worker had claimed is queued again. Deleting a job is deleting its
row; the worker finds out after its current step.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from lightx2v_sgmd.system.errors import FULL_DISK, UserError, is_full_disk

Status = Literal["queued", "in_progress", "completed", "failed"]
STATUSES: Final = ("queued", "in_progress", "completed", "failed")

_SET: Final = 1_735_689_600.0
"""The year 2025: a clock that shows less was not set when the machine started."""
MOST_DEATHS: Final = 3
"""A job is failed, not tried again, when so many workers died while they made it."""
LORA_VERSION: Final = 2
"""The version of the queue since which a job may name a LoRA."""
IMAGE_VERSION: Final = 3
"""The version of the queue since which a job may start from an image."""
_VERSION: Final = 3
_TABLES: Final = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt TEXT NOT NULL,
    seed INTEGER NOT NULL,
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    num_frames INTEGER NOT NULL,
    fps REAL NOT NULL,
    lora TEXT,
    image TEXT,
    progress INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    completed_at REAL,
    seconds REAL,
    bytes INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    worker TEXT,
    deaths INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_by_status ON jobs (status, number);
CREATE TABLE counters (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""
_UPDATES: Final = {
    1: "ALTER TABLE jobs ADD COLUMN lora TEXT",
    2: "ALTER TABLE jobs ADD COLUMN image TEXT",
}
"""The statement that makes a queue of a version one of the next, by version."""


@dataclass(frozen=True)
class Wanted:
    """A checked request: what is to be made.

    Attributes:
        image: The sha256 of the image that it starts from, whose file is the server's; or None.
    """

    model: str
    prompt: str
    seed: int
    height: int
    width: int
    num_frames: int
    fps: float
    lora: str | None
    image: str | None


@dataclass(frozen=True)
class VideoJob(Wanted):
    """A row of the queue.

    Attributes:
        id: The name that clients know it by.
        status: ``queued``, ``in_progress``, ``completed`` or ``failed``.
        progress: Percent of its steps that are done.
        created_at: Unix time in seconds.
        completed_at: Unix time in seconds when it was completed or failed.
        seconds: Time that it took to make, its share of a batch.
        bytes: The size of its file.
        error: Why it failed.
        deaths: The number of workers that died while they made it.
    """

    id: str
    status: Status
    progress: int
    created_at: float
    completed_at: float | None
    seconds: float | None
    bytes: int
    error: str | None
    deaths: int

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and frames."""
        return self.height, self.width, self.num_frames


class QueueFull(Exception):
    """The queue has as many jobs as it may have."""

    def __init__(self, queued: int) -> None:
        super().__init__(f"{queued} requests wait")
        self.queued = queued


def new_name() -> str:
    """A name for a job, which nobody can guess."""
    return f"video_{secrets.token_hex(16)}"


_FIELDS: Final = ", ".join(item.name for item in fields(VideoJob))
_NEW: Final = tuple(item.name for item in fields(Wanted))


class JobStore:
    """The queue, for the threads of one process.

    Args:
        file: The database; it is made if it does not exist.

    Raises:
        UserError: the file is no queue of this version.
    """

    def __init__(self, file: Path) -> None:
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(
                file, timeout=60.0, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            with self._change() as db:
                found = version = db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in filter(str.strip, _TABLES.split(";")):
                        db.execute(statement)
                    version = _VERSION
                while version in _UPDATES:
                    db.execute(_UPDATES[version])
                    version += 1
                if found != version == _VERSION:  # nothing is written to one that is up to date
                    db.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.DatabaseError as error:
            if is_full_disk(error):
                raise UserError(f"{file}: {FULL_DISK}") from error
            raise UserError(
                f"{file}: is not a queue of this program or cannot be opened ({error}); choose "
                "another --data folder"
            ) from error
        if version != _VERSION:
            raise UserError(
                f"{file}: was written by another version of this program; choose another --data "
                "folder"
            )

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._db.close()

    def add(self, wanted: Wanted, queue_limit: int, name: str | None = None) -> VideoJob:
        """Accepts a request: when this returns it is on the disk.

        Args:
            wanted: The request.
            queue_limit: The most jobs that wait.
            name: The job's name, one of ``new_name``; default another one.

        Raises:
            QueueFull: as many jobs wait as may wait.
        """
        name = name or new_name()
        values = [getattr(wanted, field) for field in _NEW]
        with self._change() as db:
            queued = self._count(db, "queued")
            if queued >= queue_limit:
                raise QueueFull(queued)
            db.execute(
                f"INSERT INTO jobs (id, status, created_at, {', '.join(_NEW)}) "
                f"VALUES (?, 'queued', ?{', ?' * len(_NEW)})",
                [name, time.time(), *values],
            )
            return self._one(db, name)

    def get(self, name: str) -> VideoJob | None:
        """The job of a name; None if there is none."""
        found = self._select("WHERE id = ?", [name])
        return found[0] if found else None

    def ahead_of(self, job: VideoJob) -> int:
        """The number of queued jobs that were accepted before a queued one."""
        with self._lock:
            row = self._db.execute(
                "SELECT count(*) FROM jobs WHERE status = 'queued' "
                "AND number < (SELECT number FROM jobs WHERE id = ?)",
                [job.id],
            ).fetchone()
        return int(row[0])

    def page(
        self, limit: int, after: str | None, newest_first: bool
    ) -> tuple[list[VideoJob], bool]:
        """Jobs in the order of acceptance, or the reverse; and True if there are more.

        Raises:
            KeyError: there is no job ``after``.
        """
        order, comparison = ("DESC", "<") if newest_first else ("ASC", ">")
        where, values = "", []
        if after is not None:
            if self.get(after) is None:
                raise KeyError(after)
            where = f"WHERE number {comparison} (SELECT number FROM jobs WHERE id = ?)"
            values = [after]
        rows = self._select(f"{where} ORDER BY number {order} LIMIT ?", [*values, limit + 1])
        return rows[:limit], len(rows) > limit

    def delete(self, name: str) -> VideoJob | None:
        """Removes a job; returns it as it was, or None. Its file is the caller's to remove."""
        with self._change() as db:
            found = self._select("WHERE id = ?", [name])
            if not found:
                return None
            db.execute("DELETE FROM jobs WHERE id = ?", [name])
            if found[0].status in ("queued", "in_progress"):
                self._add_to(db, "cancelled", 1)
            return found[0]

    def claim(self, worker: str, together: Callable[[VideoJob], int]) -> list[VideoJob]:
        """Gives a worker the oldest queued job, and later ones of its weights, LoRA and size.

        Jobs with an image and jobs without one are not made together. A job that a worker died of
        is given alone, so that it cannot take others with it.

        Args:
            worker: The name of this start of the worker.
            together: The most jobs like a job that are made at once.
        """
        oldest = "WHERE status = 'queued' ORDER BY number LIMIT 1"
        if not self._select(oldest, []):  # an idle worker asks often: it locks nothing
            return []
        with self._change() as db:
            first = self._select(oldest, [])
            if not first:
                return []
            jobs = first
            if not first[0].deaths:
                jobs = self._select(
                    "WHERE status = 'queued' AND deaths = 0 AND height = ? AND width = ? "
                    "AND num_frames = ? AND model = ? AND lora IS ? AND (image IS NULL) = ? "
                    "ORDER BY number LIMIT ?",
                    [
                        *first[0].size,
                        first[0].model,
                        first[0].lora,
                        first[0].image is None,
                        max(1, together(first[0])),
                    ],
                )
            for job in jobs:
                db.execute(
                    "UPDATE jobs SET status = 'in_progress', worker = ?, progress = 0 WHERE id = ?",
                    [worker, job.id],
                )
            return [self._one(db, job.id) for job in jobs]

    def advance(self, worker: str, names: Sequence[str], percent: int) -> set[str]:
        """Notes the progress of jobs; returns those of them that are still wanted."""
        with self._change() as db:
            return {
                name
                for name in names
                if db.execute(
                    "UPDATE jobs SET progress = ? WHERE id = ? AND worker = ?",
                    [percent, name, worker],
                ).rowcount
            }

    def complete(self, worker: str, name: str, seconds: float, size: int) -> bool:
        """Notes that a job's file is there; False if the job is no longer this worker's."""
        with self._change() as db:
            changed = db.execute(
                "UPDATE jobs SET status = 'completed', progress = 100, completed_at = ?, "
                "seconds = ?, bytes = ?, worker = NULL WHERE id = ? AND worker = ?",
                [time.time(), seconds, size, name, worker],
            ).rowcount
            if changed:
                self._add_to(db, "completed", 1)
                self._add_to(db, "seconds", seconds)
            return bool(changed)

    def fail(self, worker: str, name: str, reason: str) -> None:
        """Notes that a job cannot be made, and why."""
        with self._change() as db:
            self._fail(db, "id = ? AND worker = ?", [name, worker], reason)

    def release(self, worker: str | None, died: bool) -> None:
        """Queues again what a worker had claimed; each keeps its place.

        Args:
            worker: The worker that is gone; None for every worker, when a server starts.
            died: True counts it against the jobs, see ``MOST_DEATHS``.
        """
        mine, values = ("worker = ?", [worker]) if worker else ("worker IS NOT NULL", [])
        with self._change() as db:
            if died:
                db.execute(f"UPDATE jobs SET deaths = deaths + 1 WHERE {mine}", values)
                self._fail(
                    db,
                    f"{mine} AND deaths >= {MOST_DEATHS}",
                    values,
                    f"the process that makes the videos died {MOST_DEATHS} times while it made this"
                    " one; it may need more memory than there is, ask for a smaller video",
                )
            db.execute(
                f"UPDATE jobs SET status = 'queued', worker = NULL, progress = 0 WHERE {mine}",
                values,
            )

    def remove_finished(self, before: float, most_bytes: float) -> list[str]:
        """Removes finished jobs that are too old, and the oldest where all take too much space.

        Args:
            before: Jobs that were finished before this Unix time go.
            most_bytes: The most bytes of all files together.

        Returns:
            The names of the removed jobs, whose files are the caller's to remove.
        """
        with self._change() as db:
            if (now := time.time()) > _SET:  # what a clock that was not set has dated is as new
                db.execute("UPDATE jobs SET completed_at = ? WHERE completed_at < ?", [now, _SET])
            rows = db.execute(
                "SELECT id, completed_at, bytes FROM jobs "
                "WHERE status IN ('completed', 'failed') ORDER BY completed_at DESC, number DESC"
            ).fetchall()
            removed, total = [], 0
            for name, completed_at, size in rows:
                total += size
                if completed_at < before or (size and total > most_bytes):
                    removed.append(name)
                    db.execute("DELETE FROM jobs WHERE id = ?", [name])
            return removed

    def names(self) -> set[str]:
        """The names of all jobs."""
        with self._lock:
            return {row[0] for row in self._db.execute("SELECT id FROM jobs")}

    def counts(self) -> dict[str, int]:
        """The number of jobs of each status."""
        with self._lock:
            rows = self._db.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall()
        return {status: dict(rows).get(status, 0) for status in STATUSES}

    def counters(self) -> dict[str, float]:
        """Totals since the folder was made: completed, failed, cancelled, seconds."""
        with self._lock:
            rows = dict(self._db.execute("SELECT name, value FROM counters").fetchall())
        return {
            name: rows.get(name, 0.0) for name in ("completed", "failed", "cancelled", "seconds")
        }

    def wait_s(self, queued: int) -> float:
        """Estimates the seconds that so many videos take, from those before; 1 each if none was."""
        totals = self.counters()
        mean = totals["seconds"] / totals["completed"] if totals["completed"] else 1.0
        return queued * mean

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A transaction that others see whole or not at all."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # on a full disk SQLite has undone it by itself
                    self._db.execute("ROLLBACK")
                raise

    def _select(self, rest: str, values: Sequence[Any]) -> list[VideoJob]:
        with self._lock:
            rows = self._db.execute(f"SELECT {_FIELDS} FROM jobs {rest}", values).fetchall()
        return [VideoJob(*row) for row in rows]

    def _one(self, db: sqlite3.Connection, name: str) -> VideoJob:
        row = db.execute(f"SELECT {_FIELDS} FROM jobs WHERE id = ?", [name]).fetchone()
        return VideoJob(*row)

    def _count(self, db: sqlite3.Connection, status: Status) -> int:
        row = db.execute("SELECT count(*) FROM jobs WHERE status = ?", [status]).fetchone()
        return int(row[0])

    def _fail(self, db: sqlite3.Connection, which: str, values: Sequence[Any], reason: str) -> None:
        changed = db.execute(
            "UPDATE jobs SET status = 'failed', error = ?, completed_at = ?, worker = NULL "
            f"WHERE {which}",
            [reason, time.time(), *values],
        ).rowcount
        self._add_to(db, "failed", changed)

    def _add_to(self, db: sqlite3.Connection, counter: str, amount: float) -> None:
        db.execute(
            "INSERT INTO counters VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            [counter, amount],
        )
