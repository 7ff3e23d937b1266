"""Checks a queue file before it is opened for writing: it may be somebody else's database.

A folder for ``--data`` may come from a stranger, or hold a database of another program that has the
name of a queue. It is looked at without changing it.
"""

from __future__ import annotations

import re
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Final

from infer.serve.jobs import IMAGE_VERSION, LORA_VERSION
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.databases import UNREADABLE_DATABASE, open_database

_TABLES: Final = {"jobs", "counters"}
_PROGRAMS: Final = re.compile(r"\b(CHECK|GENERATED|AS|REFERENCES|COLLATE)\b|DEFAULT\s*\(", re.I)
"""Parts of a table's declaration that compute something; a queue has none."""
_STRANGE_JOBS: Final = f"""
SELECT id FROM jobs WHERE typeof(id) != 'text' OR length(id) != 38
OR id NOT GLOB 'video_{"[0-9a-f]" * 32}'
OR typeof(status) != 'text' OR typeof(model) != 'text' OR typeof(prompt) != 'text'
OR typeof(seed) != 'integer' OR typeof(height) != 'integer' OR typeof(width) != 'integer'
OR typeof(num_frames) != 'integer' OR typeof(fps) != 'real' OR typeof(progress) != 'integer'
OR typeof(created_at) != 'real' OR typeof(bytes) != 'integer' OR typeof(deaths) != 'integer'
OR length(prompt) > 1000000 OR length(model) > 10000 LIMIT 1
"""
_STRANGE_LORAS: Final = """
SELECT id FROM jobs WHERE typeof(lora) NOT IN ('text', 'null') OR length(lora) > 1000 LIMIT 1
"""
"""Jobs name a LoRA since version 2 of the queue."""
_STRANGE_IMAGES: Final = """
SELECT id FROM jobs WHERE typeof(image) NOT IN ('text', 'null') OR length(image) != 64 LIMIT 1
"""
"""Jobs may have an image since version 3 of the queue."""


def check_queue(file: Path) -> None:
    """Refuses a file that is not a queue of this program; a missing or an empty one is well.

    The caller has locked the folder.

    Raises:
        UserError: the file is a link, a pipe or a folder, another program's database, a queue that
            runs something of its own, or one with jobs that this program does not write.
    """
    new = []
    for path in (file, *(file.with_name(file.name + end) for end in ("-wal", "-shm", "-journal"))):
        try:
            kind = path.lstat().st_mode
        except FileNotFoundError:
            new.append(path)
            continue
        if not stat.S_ISREG(kind):
            raise UserError(f"{path}: is a link or no file, as no queue is; choose another --data")
    if file in new or not file.stat().st_size:
        return
    try:
        with closing(open_database(file)) as db:
            problem = _problem(db)
    except UNREADABLE_DATABASE as error:
        problem = f"it cannot be read ({error})"
    finally:
        for path in new:  # SQLite makes some of them to read, and nobody else is at work here
            path.unlink(missing_ok=True)
    if problem is not None:
        raise UserError(
            f"{file}: is not a queue of this program: {problem}; choose another --data folder"
        )


def _problem(db: sqlite3.Connection) -> str | None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    parts = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchmany(100)
    if not version and not parts:
        return None  # its writer was killed before it wrote anything
    tables = {name for kind, name, _, _ in parts if kind == "table"}
    if not version or {name for name in tables if not name.startswith("sqlite_")} != _TABLES:
        return "it has other tables"
    for kind, name, _, declaration in parts:
        if kind not in ("table", "index"):
            return f"it has a {kind}"
        if declaration is not None and _PROGRAMS.search(declaration):
            return f"its {kind} {name} computes something"
        if kind == "index" and any(row[1] == -2 for row in db.execute(_COLUMNS, [name])):
            return f"its index {name} computes something"
    found = db.execute(_STRANGE_JOBS).fetchone()
    if found is None and version >= LORA_VERSION:
        found = db.execute(_STRANGE_LORAS).fetchone()
    if found is None and version >= IMAGE_VERSION:
        found = db.execute(_STRANGE_IMAGES).fetchone()
    return None if found is None else f"it has a job {str(found[0])[:60]!r}"


_COLUMNS: Final = "SELECT seqno, cid FROM pragma_index_xinfo(?)"
