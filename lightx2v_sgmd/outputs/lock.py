"""One process at a time on one output, also on shared file systems and between containers.

The lock is a file that names its owner: in a folder that a command works in
(``.lightx2v-sgmd.lock``), or beside a file or a folder that appears by rename
(``.NAME.lightx2v-sgmd.lock``). Its owner touches it every ``TOUCH_S`` seconds.

- The owner ran on this machine and in this container: it is asked for by number and start time.
  If it is gone, the lock is taken over at once.
- It runs elsewhere: if the lock is touched while we look, it is alive and we leave; if it has not
  been touched for ``STALE_S`` seconds by the file server's clock, or while we looked for so long,
  it is taken over. So the job that a scheduler starts on another machine right after a kill waits
  two minutes at most. Slurm's requeue is known by its job id and restart count, and does not wait.
- The lock came along with a copied folder: it is another file than the one that was written, and
  the original still is where it was. It is ignored.

Whoever was suspended for so long that its lock was taken over finds out before it publishes
anything (``check``).
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.outputs.owner import Life, Owner, here
from lightx2v_sgmd.outputs.writer import (
    clean_temporaries,
    move,
    rename_new,
    short_name,
    temporary_path,
)
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import RunError, UserError
from lightx2v_sgmd.untrusted.json_text import RECORD, parse_json

NAME: Final = ".lightx2v-sgmd.lock"
TOUCH_S: Final = 10.0
STALE_S: Final = 120.0
"""A lock from elsewhere is its owner's as long as it was touched within this time."""
LEAVING_S: Final = 60.0
"""How long a process whose launcher is gone may take to save and leave."""
_POLL_S: Final = 0.5
_MOST_BYTES: Final = 65536


@dataclass(frozen=True)
class _Found:
    """A lock of somebody's: its content as it is, its owner if it says one, its last touch."""

    content: bytes
    inode: int
    touched: float
    saved: dict[str, Any]

    @property
    def owner(self) -> Owner | None:
        try:
            saved = self.saved
            return Owner(saved["host"], saved["place"], int(saved["pid"]), int(saved["start"]))
        except (KeyError, TypeError, ValueError):
            return None

    def describe(self) -> str:
        owner = self.owner
        if owner is None:
            return "a process that it does not name"
        return f"pid {owner.pid} on {owner.host}, since {self.saved.get('since')}"


class OutputLock:
    """The right to write one output.

    Args:
        output: What is written, for messages.
        file: The lock.
        command: Which command this is, for whoever comes second.
        quiet: Say nothing.
    """

    def __init__(self, output: Path, file: Path, command: str, quiet: bool = False) -> None:
        self.output, self.file, self.quiet = output, file, quiet
        self._command = command
        self._content = b""
        self._pid = 0
        self._over = threading.Event()
        self._lost = ""

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            UserError: another process has it; the message says which.
        """
        deadline_s: float | None = None
        first: _Found | None = None
        while not self._create():
            found = _read(self.file)
            if found is None:
                continue  # released while we looked
            if first is None or first.content != found.content:
                first, deadline_s = found, None
            now_s = time.monotonic()
            verdict, patience_s = self._judge(found, first)
            if verdict == "dead":
                if self._take_over(found):
                    note(
                        f"{self.output}: was left by {found.describe()}, which is gone", self.quiet
                    )
                continue
            if deadline_s is None:
                deadline_s = now_s + patience_s
                if patience_s:
                    why = f"waiting up to {patience_s:.0f} s to see whether it is alive"
                    note(f"{self.output}: is in use by {found.describe()}; {why}", self.quiet)
            if verdict == "alive" or (verdict == "leaving" and now_s >= deadline_s):
                raise self._refusal(found)
            if now_s >= deadline_s:  # not a sign in all this time
                self._take_over(found)
                continue
            time.sleep(_POLL_S)
        threading.Thread(target=self._keep_touching, name="output lock", daemon=True).start()

    def check(self) -> None:
        """Makes sure that the lock is still ours; call it before anything is published.

        Raises:
            RunError: it was taken over, as after a long suspension.
        """
        found = _read(self.file)
        if found is None or found.content != self._content:
            who = "nobody" if found is None else found.describe()
            self._lost = self._lost or (
                f"{self.output}: this process was without a sign for too long, and its lock is now "
                f"held by {who}; nothing more is written, run the same command again"
            )
        if self._lost:
            raise RunError(self._lost)

    def also(self, path: Path) -> AbstractContextManager[object]:
        """The lock of a file in the folder that is locked, for the moment of its publication."""
        if self.file.name != NAME:
            return nullcontext()
        return locked_file(path.resolve(), self._command, quiet=True)

    def release(self) -> None:
        """Gives the lock back, if it is still ours."""
        self._over.set()
        if self._pid != os.getpid():  # a fork: its parent has the lock
            return
        with _one_at_a_time(self.file.parent), suppress(OSError):
            found = _read(self.file)
            if found is not None and found.content == self._content:
                self.file.unlink()

    def _create(self) -> bool:
        """Makes the lock if there is none; it appears with its content or not at all."""
        temporary = temporary_path(self.file)
        owner = here()
        self._pid = owner.pid
        try:
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            with os.fdopen(handle, "wb") as file:
                self._content = _content(owner, self._command, self.file, file.fileno())
                file.write(self._content)
                file.flush()
                os.fsync(file.fileno())
            with _one_at_a_time(self.file.parent):
                rename_new(temporary, self.file)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UserError(
                f"{self.output}: cannot be locked ({self.file}: {reason}); mend that or choose "
                "another output"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _judge(self, found: _Found, first: _Found) -> tuple[str, float]:
        """``dead``, ``alive``, ``leaving`` or ``unknown``, and for how long to wait and see."""
        owner = found.owner
        if owner is not None:
            if _restarted(found.saved) or _is_copy(found, self.file):
                return "dead", 0.0
            life = owner.life()
            if life is Life.dead:
                return "dead", 0.0
            if life is Life.runs:
                orphan = found.saved.get("parent") not in (owner.parent(), None)
                return ("leaving", LEAVING_S) if orphan else ("alive", 0.0)
        if found.touched > first.touched:
            return "alive", 0.0
        quiet_s = _server_time(self.file) - found.touched
        if quiet_s > STALE_S:
            return "dead", 0.0
        return "unknown", STALE_S - max(0.0, quiet_s)

    def _refusal(self, found: _Found) -> UserError:
        command = found.saved.get("command", "another command")
        remedy = "wait until it ends, or choose another output"
        owner = found.owner
        if owner is None or owner.life() is Life.unknown:
            remedy += f"; if that process is gone for sure, remove {self.file.name} there"
        return UserError(
            f"{self.output}: is in use by lightx2v-sgmd {command} ({found.describe()}); {remedy}"
        )

    def _take_over(self, found: _Found) -> bool:
        """Removes a lock without an owner; False if it is not there any more."""
        with _one_at_a_time(self.file.parent):
            again = _read(self.file)
            if again is None or again.content != found.content:
                return False
            if again.touched > found.touched and again.inode == found.inode:
                return False
            aside = temporary_path(self.file)
            try:
                move(self.file, aside)
            except FileNotFoundError:
                return False
            taken = _read(aside)
            if taken is not None and taken.content != found.content:
                # Somebody was faster, on a file system where we cannot exclude each other.
                with suppress(OSError):
                    rename_new(aside, self.file)
                return False
            with suppress(OSError):
                aside.unlink(missing_ok=True)
        return True

    def _keep_touching(self) -> None:
        while not self._over.wait(TOUCH_S):
            with suppress(OSError, UserError):  # ``check`` says so
                found = _read(self.file)
                if found is None or found.content != self._content:
                    return
                os.utime(self.file)


@contextmanager
def locked_folder(
    folder: Path, command: str, quiet: bool = False, below: Sequence[str] = ()
) -> Iterator[OutputLock]:
    """A folder to work in, made if it is not there, with no other process of ours in it.

    What dead processes have left half-written in it is removed. A folder that was made for the
    lock and got nothing else goes again.

    Args:
        folder: The output.
        command: Which command this is.
        quiet: Say nothing.
        below: Patterns of folders in it that the command writes into, too.

    Raises:
        UserError: another process works in it, or it cannot be written.
    """
    made = _make_folders(folder)
    lock = OutputLock(folder, folder / NAME, command, quiet)

    def clean() -> None:
        for place in (folder, *(path for pattern in below for path in folder.glob(pattern))):
            clean_temporaries(place)

    with _held(lock, made, clean):
        yield lock


@contextmanager
def locked_file(
    path: Path, command: str, quiet: bool = False, beside: Sequence[str] = ()
) -> Iterator[OutputLock]:
    """A file, or a folder that appears by rename, that no other process of ours makes.

    The lock lies beside it. Temporaries of dead processes for the same output are removed.

    Args:
        path: The output.
        command: Which command this is.
        quiet: Say nothing.
        beside: Names of files that are made with it.

    Raises:
        UserError: another process makes it, or its folder cannot be written.
    """
    made = _make_folders(path.parent)
    lock = OutputLock(path, path.with_name(f".{short_name(path.name)}{NAME}"), command, quiet)

    def clean() -> None:
        for name in (path.name, *beside):
            clean_temporaries(path.parent, name)

    with _held(lock, made, clean):
        yield lock


@contextmanager
def _held(lock: OutputLock, made: list[Path], clean: Callable[[], object]) -> Iterator[None]:
    try:
        lock.acquire()
        clean_temporaries(lock.file.parent, lock.file.name)
        clean()
        yield
    finally:
        lock.release()
        for folder in made:  # those that nothing was written into
            with suppress(OSError):
                folder.rmdir()


def _make_folders(folder: Path) -> list[Path]:
    """Makes a folder with its parents; returns those that were not there, the deepest first."""
    missing = []
    path = folder
    while not path.exists() and path != path.parent:
        missing.append(path)
        path = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{folder}: cannot be made ({reason}); mend that or choose another output"
        ) from error
    return missing


def _content(owner: Owner, command: str, file: Path, handle: int) -> bytes:
    saved = {
        "format_version": 1,
        "command": command,
        "host": owner.host,
        "place": owner.place,
        "pid": owner.pid,
        "start": owner.start,
        "parent": os.getppid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "path": os.fspath(file.absolute()),
        "inode": os.fstat(handle).st_ino,
        "token": secrets.token_hex(16),
        **_slurm(),
    }
    return (json.dumps(saved, indent=1) + "\n").encode()


def _slurm() -> dict[str, str]:
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
    return {name: os.environ[name] for name in names if name in os.environ}


def _restarted(saved: dict[str, Any]) -> bool:
    """True if the lock is of an earlier start of this very Slurm job, which has ended."""
    ours = _slurm()
    if "SLURM_JOB_ID" not in ours or saved.get("SLURM_JOB_ID") != ours["SLURM_JOB_ID"]:
        return False
    try:
        before = int(saved.get("SLURM_RESTART_COUNT", 0))
        return int(ours.get("SLURM_RESTART_COUNT", 0)) > before
    except (TypeError, ValueError):
        return False


def _is_copy(found: _Found, file: Path) -> bool:
    """True if a lock came with a copy of its folder: the original is still where it was."""
    original = found.saved.get("path")
    if found.inode == found.saved.get("inode") or not isinstance(original, str):
        return False
    other = _read(Path(original))
    if other is None or other.content != found.content:
        return False
    with suppress(OSError):
        return not os.path.samefile(original, file)
    return False


def _read(file: Path) -> _Found | None:
    """The lock that is there; None if there is none.

    Raises:
        UserError: there is something else, or it cannot be read.
    """
    try:
        # Opened, not only looked at: that is what makes a network file system ask its server.
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); look at it") from error
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{file}: is not a file, as a lock is; move it away")
        content = os.read(handle, _MOST_BYTES)
    finally:
        os.close(handle)
    try:
        saved = parse_json(content, RECORD)
    except ValueError:
        saved = {}
    return _Found(content, about.st_ino, about.st_mtime, saved if isinstance(saved, dict) else {})


def _server_time(file: Path) -> float:
    """The time by the clock that stamps files in the lock's folder."""
    probe = temporary_path(file)
    try:
        with probe.open("wb") as opened:
            opened.write(b"x")
            opened.flush()
            os.fsync(opened.fileno())
            return os.fstat(opened.fileno()).st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Processes of this machine change a folder's locks one after the other.

    Only a help: where the file system has no such lock, or someone holds it, we go on after a
    second, and what is renamed is looked at again.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(handle)
