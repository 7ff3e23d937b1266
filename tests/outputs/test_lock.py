"""Who may write an output, and what becomes of the locks of those who are gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.outputs import lock as locks
from lightx2v_sgmd.outputs import locked_file, locked_folder
from lightx2v_sgmd.outputs.owner import here
from lightx2v_sgmd.system.errors import RunError, UserError

HOLD = """
import sys, time
from pathlib import Path
from lightx2v_sgmd.outputs import locked_folder
with locked_folder(Path(sys.argv[1]), "distill", quiet=True):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(folder: Path, seconds: float = 600) -> subprocess.Popen[str]:
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def take(folder: Path) -> None:
    with locked_folder(folder, "distill"):
        pass


def rewrite(folder: Path, **changes: Any) -> Path:
    """Changes what the lock of a folder says; its inode stays."""
    file = folder / locks.NAME
    saved = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(saved))
    return file


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder whose lock was left by a process on another machine, just now."""
    folder = tmp_path / "run"
    process = hold(folder)
    process.kill()
    process.wait()
    rewrite(folder, host="gpu07", place="0" * 12, pid=4711)
    return folder


WAITING = "to see whether it is alive"


def fresh(folder: Path) -> None:
    """Makes a lock's last sign of life as late as can be: a clock that is ahead touched it."""
    soon = time.time() + 60
    os.utime(folder / locks.NAME, (soon, soon))


def test_the_second_is_told_who_is_there(tmp_path: Path) -> None:
    process = hold(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        take(tmp_path / "run")
    process.kill()
    process.wait()
    said = str(caught.value)
    assert (
        f"is in use by lightx2v-sgmd distill (pid {process.pid} on {here().host}, since 20" in said
    )
    assert "\n" not in said and len(said) - len(str(tmp_path)) < 300


def test_a_killed_process_leaves_a_lock_that_nobody_waits_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = hold(tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked_folder(tmp_path / "run", "distill"):
        pass
    err = capsys.readouterr().err
    assert f"was left by pid {process.pid} on" in err and WAITING not in err
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []


def test_a_process_number_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = hold(folder)
    process.kill()
    process.wait()
    rewrite(folder, pid=os.getpid(), start=here().start + 1)
    take(folder)


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    process = hold(tmp_path / "run")
    process.kill()
    # Dead, and still in the table of processes: nobody has taken its exit code.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    take(tmp_path / "run")
    process.wait()


def test_a_lock_from_another_machine_is_taken_when_nobody_touches_it(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "STALE_S", 1.0)
    fresh(elsewhere)
    take(elsewhere)
    assert WAITING in capsys.readouterr().err


def test_a_lock_from_another_machine_that_is_old_is_taken_at_once(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(elsewhere / locks.NAME, (an_hour_ago, an_hour_ago))
    take(elsewhere)
    assert WAITING not in capsys.readouterr().err


def test_a_lock_from_another_machine_that_is_touched_is_respected(elsewhere: Path) -> None:
    over = threading.Event()

    def touch() -> None:
        while not over.wait(0.2):
            os.utime(elsewhere / locks.NAME)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"pid 4711 on gpu07.*gone for sure, remove \.lightx"):
            take(elsewhere)
    finally:
        over.set()
        thread.join()
    assert json.loads((elsewhere / locks.NAME).read_text())["host"] == "gpu07"


def test_an_owner_whose_clock_was_set_back_lives(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(elsewhere)
    monkeypatch.setattr(locks, "STALE_S", 30.0)
    pause = time.sleep

    def touched_meanwhile(seconds: float) -> None:
        os.utime(elsewhere / locks.NAME, (0, 0))  # in 1970
        pause(seconds)

    monkeypatch.setattr(time, "sleep", touched_meanwhile)
    with pytest.raises(UserError, match=r"pid 4711 on gpu07"):
        take(elsewhere)


def test_a_requeued_slurm_job_does_not_wait_for_itself(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(elsewhere, SLURM_JOB_ID="99")
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    take(elsewhere)
    assert WAITING not in capsys.readouterr().err


def test_another_slurm_job_waits(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(elsewhere, SLURM_JOB_ID="98")
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(locks, "STALE_S", 1.0)
    fresh(elsewhere)
    take(elsewhere)
    assert WAITING in capsys.readouterr().err


def test_a_copied_folder_is_free_and_a_moved_one_is_not(tmp_path: Path) -> None:
    process = hold(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    take(tmp_path / "copy")
    os.rename(tmp_path / "run", tmp_path / "moved")
    with pytest.raises(UserError, match=f"pid {process.pid} on"):
        take(tmp_path / "moved")
    process.kill()
    process.wait()


def test_the_owner_notices_that_its_folder_was_moved(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "run", "distill", quiet=True) as lock:
        lock.check()
        os.rename(tmp_path / "run", tmp_path / "moved")
        with pytest.raises(RunError, match="lock is now held by nobody"):
            lock.check()


def test_who_was_suspended_too_long_writes_nothing(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "distill", quiet=True) as lock:
        rewrite(tmp_path, pid=1, host="gpu08", token="another")
        with pytest.raises(RunError, match="held by pid 1 on gpu08"):
            lock.check()
    assert json.loads((tmp_path / locks.NAME).read_text())["host"] == "gpu08"  # not ours to remove


def test_the_lock_is_kept_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "TOUCH_S", 0.05)
    with locked_folder(tmp_path, "distill", quiet=True) as lock:
        os.utime(lock.file, (0, 0))
        until = time.monotonic() + 120
        while lock.file.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.02)
        assert time.time() - lock.file.stat().st_mtime < 60


def test_what_dead_processes_left_below_goes_too(tmp_path: Path) -> None:
    dead = f".00.mp4.{2**22 + 9}-1-{here().namespace}-0.new.mp4"
    for place in ("samples/step_000005", "other/step_000005"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / dead).write_text("half")
    with locked_folder(tmp_path, "distill", quiet=True, below=["samples/*"]):
        pass
    assert [p.parts[-3] for p in tmp_path.rglob(dead)] == ["other"]


def test_a_lock_beside_a_file_leaves_nothing(tmp_path: Path) -> None:
    name = "日" * 80 + ".mp4"
    with locked_file(tmp_path / "new" / name, "generate", quiet=True):
        with pytest.raises(UserError, match="is in use by lightx2v-sgmd generate"):
            with locked_file(tmp_path / "new" / name, "generate", quiet=True):
                pass
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_find_a_dead_lock_one_at_a_time_has_it(tmp_path: Path) -> None:
    """Each adds to a counter that is read, waited with and written: no addition is lost."""
    script = """
import sys, time
from pathlib import Path
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.outputs import locked_folder
folder = Path(sys.argv[1]); counter = folder / "counter"; done = 0
while done < 5:
    try:
        with locked_folder(folder, "distill", quiet=True):
            number = int(counter.read_text())
            time.sleep(0.002)
            counter.write_text(str(number + 1))
            done += 1
    except UserError as error:
        assert "is in use by" in str(error), error
        time.sleep(0.003)
"""
    process = hold(tmp_path)
    process.kill()
    process.wait()
    (tmp_path / "counter").write_text("0")
    command = [sys.executable, "-c", script, str(tmp_path)]
    started = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(timeout=900) for process in started] == [0] * 4
    assert (tmp_path / "counter").read_text() == "20"
