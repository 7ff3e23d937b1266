"""Locks on disk that are garbled, or no files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightx2v_sgmd.outputs import lock as locks
from lightx2v_sgmd.outputs import locked_folder
from lightx2v_sgmd.outputs.owner import here
from lightx2v_sgmd.system.errors import UserError


def of_nobody(pid: str, start: str = "1") -> bytes:
    """A lock of a process that cannot be, in this process's own place."""
    text = json.dumps({"host": "h", "place": here().namespace, "pid": "@", "start": "$"})
    return text.replace('"@"', pid).replace('"$"', start).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff\x00", b"[1]", b"{}", b"[" * 60000),
        *(of_nobody(pid) for pid in ("1e999", "9" * 30, "-1", "0", "[]")),
        of_nobody("5", "1e999"),
    ],
)
def test_a_garbled_lock_is_judged_by_its_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(locks, "STALE_S", 0.6)
    (tmp_path / locks.NAME).write_bytes(content)
    with locked_folder(tmp_path, "distill"):
        pass
    assert not (tmp_path / locks.NAME).exists()


def test_what_is_no_file_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / locks.NAME).mkdir()
    with pytest.raises(UserError, match=r"is not a file, as a lock is; move it away"):
        with locked_folder(tmp_path, "distill"):
            pass
    other = tmp_path / "other"
    other.mkdir()
    (other / locks.NAME).symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="cannot be read"):
        with locked_folder(other, "distill"):
            pass
