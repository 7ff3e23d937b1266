"""Runs a worker, or the API's changes, and kills the process at each thing that it does to disk.

    python -m tests.infer.serve.dying FOLDER [STEP]

A child is forked for every statement of SQLite and every file that is opened, moved or removed, and
killed by SIGKILL just before it; STEP takes every so many of these moments. Then a new worker goes
on. What is not as it must be is printed, and the last line is the number of moments. It is a
process of its own because a fork must have no threads beside it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import infer.batch.writing  # noqa: F401  (imported before the fork, so that children are quick)
from infer.serve.backend import Backend
from infer.serve.jobs import JobStore
from infer.serve.work.messages import ServerStopped
from tests.infer.serve.standin import WANTED, StandIn, make_backend, make_maker

EVENTS = ("open", "os.rename", "os.remove", "subprocess.Popen")
_ADOPT = 36
"""Linux's PR_SET_CHILD_SUBREAPER: encoders of dead children become children of this process."""


class Death:
    """Counts what the process does to the disk, and kills it at the given count."""

    def __init__(self, at: int) -> None:
        self.left = at

    def event(self, *what: Any) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, folder: Path) -> None:
        """Watches files below a folder from now on."""

        def hook(name: str, values: tuple[Any, ...]) -> None:
            if name in EVENTS and (name == "subprocess.Popen" or str(folder) in str(values)):
                self.event()

        sys.addaudithook(hook)

    def watch_store(self, store: JobStore) -> None:
        db: sqlite3.Connection = store._db
        db.set_trace_callback(self.event)


def dies(at: int, work: Callable[[Death], None]) -> bool:
    """Runs ``work`` in a child that dies at that moment; False if it ended before."""
    child = os.fork()
    if not child:
        death = Death(at)
        try:
            work(death)
        except BaseException as error:
            print(f"moment {at}: {type(error).__name__}: {error}", flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    with suppress(ChildProcessError):
        while True:  # an encoder that outlives its worker may begin its file only now
            os.waitpid(-1, 0)
    return os.WIFSIGNALED(status)


def make_all(backend: Backend, death: Death | None = None) -> None:
    """A worker that makes the videos that wait, and is then told to stop."""
    ours, theirs = Pipe()
    maker = make_maker(backend, StandIn(), theirs)
    wait = maker._wait_for_server

    def stop_when_idle(wait_s: float) -> None:
        if wait_s:
            raise ServerStopped
        wait(wait_s)

    maker._wait_for_server = stop_when_idle  # type: ignore[method-assign]
    if death is not None:
        death.watch_store(backend.store)
        death.watch(backend.results.folder)
    try:
        maker.work(None)
    except ServerStopped:
        ours.close()


def check_worker(folder: Path, at: int) -> bool:
    """A worker dies at that moment and another goes on; False when no moment is left."""
    backend = make_backend(folder)
    wanted = {backend.store.add(WANTED, 10).id for _ in range(2)}
    backend.store.close()
    died = dies(at, lambda death: make_all(make_backend(folder), death))
    backend = make_backend(folder)  # removes what the dead left, as a worker does when it starts
    backend.store.release(None, died=True)
    make_all(backend)
    jobs = {name: backend.store.get(name) for name in wanted}
    for name, job in jobs.items():
        file = backend.results.video(name)
        if job is None or job.status != "completed" or file.stat().st_size != job.bytes:
            print(f"worker, moment {at}: {job}", flush=True)
    files = {path.name for path in (folder / "videos").iterdir()}
    if files != {f"{name}.mp4" for name in wanted}:
        print(f"worker, moment {at}: left {sorted(files)}", flush=True)
    backend.store.close()
    return died


def check_api(folder: Path, at: int) -> bool:
    """The API dies at that moment while it accepts two jobs and deletes a finished one."""
    backend = make_backend(folder)
    old = backend.store.add(WANTED, 10).id
    make_all(backend)
    backend.store.close()
    accepted, told = os.pipe()

    def accept(death: Death) -> None:
        backend = make_backend(folder)
        death.watch_store(backend.store)
        death.watch(folder)
        for _ in range(2):
            os.write(told, backend.store.add(WANTED, 10).id.encode() + b"\n")
        backend.delete(old)

    died = dies(at, accept)
    os.close(told)
    names = os.read(accepted, 10_000).decode().split()
    os.close(accepted)
    backend = make_backend(folder)
    make_all(backend)
    for name in names:
        job = backend.store.get(name)
        if job is None or job.status != "completed":
            print(f"API, moment {at}: accepted {name} is {job}", flush=True)
    files = {path.stem for path in (folder / "videos").iterdir()}
    if files != backend.store.names():
        print(f"API, moment {at}: files {sorted(files)} are not the jobs", flush=True)
    backend.store.close()
    return died


def main(work: Path, step: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_ADOPT, 1, 0, 0, 0)
    moments = 0
    for check in (check_worker, check_api):
        at, died = 1, True
        while died:
            died = check(work / "data", at)
            shutil.rmtree(work / "data")
            at, moments = at + step, moments + died
    print(moments)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
