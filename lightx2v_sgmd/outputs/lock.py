"""Locks that let one process at a time write an output, also on shared file systems.

The lock is a file that names its owner. It lies in a folder that a command works in
(``.lightx2v-sgmd.lock``), or beside a file or folder that appears by rename
(``.NAME.lightx2v-sgmd.lock``). The owner touches it every ``TOUCH_S`` seconds. A second process
that comes to a lock decides by these rules:

- If the owner ran on this machine and in this container, the second process looks it up by number
  and start time. If it is gone, the second process takes the lock over at once.
- If the owner runs elsewhere, the second process waits. A lock that is touched meanwhile has a
  living owner, and the second process leaves. A lock that was not touched for ``STALE_S`` seconds,
  by the file server's clock, is taken over. So a job that a scheduler starts on another machine
  right after a kill waits two minutes at most. Slurm's requeue has the same job id and a higher
  restart count, and does not wait.
- If the lock came with a copied folder (it is another file than the one that was written, and the
  original still exists), it is ignored.

A process that was suspended for so long that its lock was taken over is stopped before it
publishes anything (``check``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

from lightx2v_sgmd.outputs.lock_file import (
    LockFile,
    changing_locks,
    is_copy,
    is_restarted,
    lock_content,
    read_lock,
)
from lightx2v_sgmd.outputs.owner import Life, here
from lightx2v_sgmd.outputs.writer import (
    clean_temporaries,
    move,
    rename_new,
    server_time,
    short_name,
    temporary_path,
)
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import RunError, UserError

NAME: Final = ".lightx2v-sgmd.lock"
TOUCH_S: Final = 10.0
STALE_S: Final = 120.0
"""Seconds without a touch after which a lock from another machine may be taken over."""
LEAVING_S: Final = 60.0
"""Seconds that a process whose launcher is gone may take to save and leave."""
_POLL_S: Final = 0.5


class OutputLock:
    """The right to write one output.

    Args:
        output: The output, for messages.
        file: The path of the lock.
        command: The name of this command, which a second process is told.
        quiet: Print nothing.
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
            UserError: another process has the lock; the message names it.
        """
        deadline_s: float | None = None
        first: LockFile | None = None
        while not self._create():
            current = read_lock(self.file)
            if current is None:
                continue  # released while we looked
            if first is None or first.content != current.content:
                first, deadline_s = current, None
            now_s = time.monotonic()
            state, patience_s = self._assess(current, first)
            if state == "dead":
                if self._take_over(current):
                    note(
                        f"{self.output}: was left by {current.describe()}, which is gone",
                        self.quiet,
                    )
                continue
            if deadline_s is None:
                deadline_s = now_s + patience_s
                if patience_s:
                    why = f"waiting up to {patience_s:.0f} s to see whether it is alive"
                    note(f"{self.output}: is in use by {current.describe()}; {why}", self.quiet)
            if state == "alive" or (state == "leaving" and now_s >= deadline_s):
                raise self._refusal(current)
            if now_s >= deadline_s:  # not a sign in all this time
                self._take_over(current)
                continue
            time.sleep(_POLL_S)
        threading.Thread(target=self._keep_touching, name="output lock", daemon=True).start()

    def check(self) -> None:
        """Makes sure that the lock is still ours; call it before anything is published.

        Raises:
            RunError: the lock was taken over, as after a long suspension.
        """
        current = read_lock(self.file)
        if current is None or current.content != self._content:
            who = "nobody" if current is None else current.describe()
            self._lost = self._lost or (
                f"{self.output}: this process was without a sign for too long, and its lock is now "
                f"held by {who}; nothing more is written, run the same command again"
            )
        if self._lost:
            raise RunError(self._lost)

    def also(self, path: Path) -> AbstractContextManager[object]:
        """Locks a file in the locked folder, while the file is published."""
        if self.file.name != NAME:
            return nullcontext()
        return locked_file(path.resolve(), self._command, quiet=True)

    def release(self) -> None:
        """Releases the lock, if it is still ours."""
        self._over.set()
        if self._pid != os.getpid():  # a fork: its parent has the lock
            return
        with changing_locks(self.file.parent), suppress(OSError):
            current = read_lock(self.file)
            if current is not None and current.content == self._content:
                self.file.unlink()

    def _create(self) -> bool:
        """Creates the lock if there is none; it appears with its content or not at all."""
        temporary = temporary_path(self.file)
        owner = here()
        self._pid = owner.pid
        try:
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            with os.fdopen(handle, "wb") as file:
                self._content = lock_content(owner, self._command, self.file, file.fileno())
                file.write(self._content)
                file.flush()
                os.fsync(file.fileno())
            with changing_locks(self.file.parent):
                rename_new(temporary, self.file)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UserError(
                f"{self.output}: cannot be locked ({self.file}: {reason}); choose another output, "
                "or change the permissions of its folder"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _assess(self, current: LockFile, first: LockFile) -> tuple[str, float]:
        """Returns the owner's state and for how many seconds to wait for a sign of life.

        The state is ``dead``, ``alive``, ``leaving`` or ``unknown``.
        """
        owner = current.owner
        if owner is not None:
            if is_restarted(current.saved) or is_copy(current, self.file):
                return "dead", 0.0
            life = owner.life()
            if life is Life.dead:
                return "dead", 0.0
            if life is Life.runs:
                orphan = current.saved.get("parent") not in (owner.parent(), None)
                return ("leaving", LEAVING_S) if orphan else ("alive", 0.0)
        if current.touched != first.touched:  # earlier, if the clock was set back meanwhile
            return "alive", 0.0
        quiet_s = server_time(self.file) - current.touched
        if quiet_s > STALE_S:
            return "dead", 0.0
        return "unknown", STALE_S - max(0.0, quiet_s)

    def _refusal(self, current: LockFile) -> UserError:
        command = current.saved.get("command", "another command")
        remedy = "wait until it ends, or choose another output"
        owner = current.owner
        if owner is None or owner.life() is Life.unknown:
            remedy += f"; if that process is gone for sure, remove {self.file.name} there"
        return UserError(
            f"{self.output}: is in use by lightx2v-sgmd {command} ({current.describe()}); {remedy}"
        )

    def _take_over(self, current: LockFile) -> bool:
        """Removes a lock whose owner is gone; returns False if it is not there any more."""
        with changing_locks(self.file.parent):
            again = read_lock(self.file)
            if again is None or again.content != current.content:
                return False
            if again.touched != current.touched and again.inode == current.inode:
                return False
            aside = temporary_path(self.file)
            try:
                move(self.file, aside)
            except FileNotFoundError:
                return False
            taken = read_lock(aside)
            if taken is not None and taken.content != current.content:
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
                current = read_lock(self.file)
                if current is None or current.content != self._content:
                    return
                os.utime(self.file)


@contextmanager
def locked_folder(
    folder: Path, command: str, quiet: bool = False, below: Sequence[str] = ()
) -> Iterator[OutputLock]:
    """Locks a folder that a command works in, and creates it if it does not exist.

    Files that dead processes left half-written in it are removed. A folder that was created for
    the lock and received nothing else is removed at the end.

    Args:
        folder: The output.
        command: The name of this command.
        quiet: Print nothing.
        below: Patterns of folders in it that the command writes into, too.

    Raises:
        UserError: another process works in the folder, or it cannot be written.
    """
    made = _make_folders(folder)
    lock = OutputLock(folder, folder / NAME, command, quiet)

    def clean() -> None:
        for path in (folder, *(p for pattern in below for p in folder.glob(pattern))):
            clean_temporaries(path)

    with _held(lock, made, clean):
        yield lock


@contextmanager
def locked_file(
    path: Path, command: str, quiet: bool = False, beside: Sequence[str] = ()
) -> Iterator[OutputLock]:
    """Locks a file, or a folder that appears by rename, with a lock beside it.

    Temporaries of dead processes for the same output are removed.

    Args:
        path: The output.
        command: The name of this command.
        quiet: Print nothing.
        beside: Names of files that are written with it.

    Raises:
        UserError: another process writes the output, or its folder cannot be written.
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
    """Creates a folder with its parents; returns those that did not exist, the deepest first."""
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
            f"{folder}: cannot be made ({reason}); choose another output, or change the "
            "permissions of the folder above it"
        ) from error
    return missing
