"""A build that was killed stops nobody, and a wait for one is not silent."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from torch.utils import cpp_extension

from lightx2v_sgmd.outputs.lock_file import lock_content
from lightx2v_sgmd.outputs.owner import here
from lightx2v_sgmd.parallel.zero3 import builds
from lightx2v_sgmd.system.errors import RunError

extensions: Any = cpp_extension
needs_batons = pytest.mark.skipif(
    not hasattr(extensions, "FileBaton"), reason="this PyTorch's locks end with their process"
)


def test_nothing_changes_where_locks_end_with_their_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in PyTorch 2.14, which has no batons."""
    monkeypatch.delattr(extensions, "FileBaton", raising=False)
    with builds.guarded_builds():
        assert not hasattr(extensions, "FileBaton")
    assert not hasattr(extensions, "FileBaton")


@needs_batons
def test_a_lock_that_a_killed_build_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(builds, "NOTE_AFTER_S", 0.0)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    lock = tmp_path / "lock"
    lock.touch()
    os.utime(lock, (time.time() - 7200, time.time() - 7200))
    with builds.guarded_builds():
        baton = extensions.FileBaton(str(lock))
    assert not baton.try_acquire()
    waiting = threading.Thread(target=baton.wait, daemon=True)
    waiting.start()
    err = ""
    for _ in range(6000):
        err += capsys.readouterr().err
        if "\n" in err:
            break
        time.sleep(0.05)
    lock.unlink()
    waiting.join()
    assert f"{lock} is 2 h 00 min old; if no such build is running, because it was killed" in err


@needs_batons
def test_a_wait_that_ends_soon_is_not_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with builds.guarded_builds():
        baton = extensions.FileBaton(str(tmp_path / "lock"))
    baton.wait()
    assert capsys.readouterr().err == ""
    assert type(extensions.FileBaton(str(tmp_path / "lock"))) is not type(baton)


def left_by(lock: Path, **changes: Any) -> None:
    """Writes a build's lock whose owner is this process, but for the changes."""
    with lock.open("wb") as file:
        owner = dataclasses.replace(here(), **changes)
        file.write(lock_content(owner, "building", lock, file.fileno()))


@needs_batons
def test_a_dead_owners_lock_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    lock = tmp_path / "lock"
    left_by(lock, start=here().start + 1)  # the number is taken again
    with builds.guarded_builds():
        baton, other = (extensions.FileBaton(str(lock)) for _ in range(2))
    assert baton.try_acquire() and not other.try_acquire()
    assert f"{lock}: was left by a build that is gone" in capsys.readouterr().err
    baton.release()
    assert not lock.exists()


@needs_batons
@pytest.mark.parametrize("changes", [{}, {"namespace": "0" * 12, "pid": 1}])
def test_a_living_or_unknown_owners_lock_stays(tmp_path: Path, changes: dict[str, Any]) -> None:
    lock = tmp_path / "lock"
    left_by(lock, **changes)
    with builds.guarded_builds():
        assert not extensions.FileBaton(str(lock)).try_acquire()
    assert lock.exists()


@needs_batons
def test_who_waits_for_a_build_that_dies_stops(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with builds.guarded_builds():
        baton = extensions.FileBaton(str(lock))
    left_by(lock, start=here().start + 1)
    with pytest.raises(RunError, match="the process that built this part of DeepSpeed is gone"):
        baton.wait()
    assert not lock.exists()
