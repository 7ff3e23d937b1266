"""A wait for a build that was killed is not silent."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from torch.utils import cpp_extension

from lightx2v_sgmd.parallel.zero3 import builds

extensions: Any = cpp_extension


def test_a_lock_that_a_killed_build_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(builds, "NOTE_AFTER_S", 0.0)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    lock = tmp_path / "lock"
    lock.touch()
    os.utime(lock, (time.time() - 7200, time.time() - 7200))
    with builds.waits_named():
        baton = extensions.FileBaton(str(lock))
    assert not baton.try_acquire()
    waiting = threading.Thread(target=baton.wait, daemon=True)
    waiting.start()
    err = ""
    for _ in range(200):
        err += capsys.readouterr().err
        if "\n" in err:
            break
        time.sleep(0.05)
    lock.unlink()
    waiting.join()
    assert f"{lock} is 2 h 00 min old; if no such build is running, because it was killed" in err


def test_a_wait_that_ends_soon_is_not_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with builds.waits_named():
        baton = extensions.FileBaton(str(tmp_path / "lock"))
    baton.wait()
    assert capsys.readouterr().err == ""
    assert type(extensions.FileBaton(str(tmp_path / "lock"))) is not type(baton)
