"""Keeps one worker running: starts it, starts it again when it dies, stops it. No PyTorch here.

A worker may be a group of processes (``group``); the death of one of them is the worker's.
"""

from __future__ import annotations

import multiprocessing
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

from infer.options import Options
from infer.serve.jobs import JobStore
from infer.serve.names import named_loras
from infer.serve.options import Served, ServeOptions, State
from infer.serve.work.messages import Opened, Order, Ready, Refused
from infer.serve.work.worker import run, run_follower
from lightx2v_sgmd.system.errors import RunError, UserError

STOP_S: Final = 30.0
"""Seconds that a worker may take to stop after its current step."""
_LAST_WORDS_S: Final = 10.0
_MOST_PAUSE_S: Final = 30.0
_PAUSE_S: Final = 0.5
_QUEUE_S: Final = 5.0
"""Seconds until a queue that could not be written is tried again."""


@dataclass
class _Running:
    """A worker's processes, the first of which leads, and the pipe to that one."""

    name: str
    processes: list[multiprocessing.process.BaseProcess]
    pipe: Connection

    def wait(self) -> bool:
        """Waits for a message; False if a process has ended and there is no message."""
        ended = [process.sentinel for process in self.processes]
        return self.pipe in wait([self.pipe, *ended])

    def end(self, patience_s: float, all_of_them: bool = False) -> int | None:
        """Ends all processes; returns the exit code of one that ended by itself.

        Args:
            patience_s: Seconds until one of them has ended by itself.
            all_of_them: True waits so long for all of them.
        """
        until = time.monotonic() + patience_s
        if all_of_them:
            for process in self.processes:
                process.join(max(0.0, until - time.monotonic()))
        else:
            wait([process.sentinel for process in self.processes], patience_s)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()
        return next((code for code in codes if code is not None), self.processes[0].exitcode)


class Supervisor:
    """The worker, as the server sees it.

    Args:
        weights: The students by name.
        engine: The engine's options.
        options: The server's options.
        store: The queue.
        on_end: Called when the worker refuses to run; the server then stops.
        run: The function that the worker's process runs.
        follow: The function that the other processes of a group run.
    """

    def __init__(
        self,
        weights: Mapping[str, Path],
        engine: Options,
        options: ServeOptions,
        store: JobStore,
        on_end: Callable[[], None],
        run: Callable[..., None] = run,
        follow: Callable[..., None] = run_follower,
    ) -> None:
        self._run, self._follow = run, follow
        self._weights, self._engine, self._options = weights, engine, options
        self._loras = named_loras(options.lora_folder)
        self._store, self._on_end = store, on_end
        self._spawn = multiprocessing.get_context("spawn")
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="watch the worker", daemon=True)
        self.state: State = "loading"
        self.restarts = 0
        self.problem: Exception | None = None
        self._running = self._start()

    @property
    def pid(self) -> int | None:
        """The worker's process number."""
        return self._running.processes[0].pid

    def open(self) -> tuple[Served, ...]:
        """Waits until the weights are found whole, and watches the worker from then on.

        Raises:
            UserError: the weights or options cannot be used.
            RunError: the worker died.
        """
        message = self._message()
        if message is None:
            code = self._running.end(_LAST_WORDS_S)
            raise RunError(
                f"the worker ended with {code} while it opened the weights; see its messages above"
            )
        if isinstance(message, Refused):
            self._running.end(_LAST_WORDS_S)
            raise UserError(message.message)
        assert isinstance(message, Opened), "a worker opens the weights first"
        self._served = message.served
        self._watcher.start()
        return self._served

    def stop(self) -> None:
        """Stops the worker after its current step; its jobs are queued again."""
        self._stopping.set()
        with self._starting:
            running = self._running
        with suppress(OSError):
            running.pipe.send("stop")
        running.end(STOP_S if self.state == "ready" else 0.0, all_of_them=True)
        if self._watcher.is_alive():
            self._watcher.join()
        with suppress(sqlite3.OperationalError):  # or when a server starts the next time
            self._store.release(running.name, died=False)
        self.state = "stopped"

    def _start(self) -> _Running:
        name = secrets.token_hex(8)
        ours, theirs = self._spawn.Pipe()
        order = Order(
            name,
            dict(self._weights),
            self._engine,
            self._options.batch_size,
            self._options.data,
            self._loras,
            self._options.nproc,
        )
        pipes = [self._spawn.Pipe(duplex=False) for _ in range(1, order.nproc)]
        targets: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
            (self._run, (order, theirs, [send for _, send in pipes])),
            *(
                (self._follow, (order, receive, rank))
                for rank, (receive, _) in enumerate(pipes, start=1)
            ),
        ]
        processes: list[multiprocessing.process.BaseProcess] = []
        for target, values in targets:
            processes.append(self._spawn.Process(target=target, args=values, daemon=True))
            processes[-1].start()
        for end in (theirs, *(end for pair in pipes for end in pair)):
            end.close()
        return _Running(name, processes, ours)

    def _message(self) -> Any:
        """The worker's next message; None if it, or one of its processes, has ended."""
        try:
            return self._running.pipe.recv() if self._running.wait() else None
        except (EOFError, OSError):
            return None

    def _watch(self) -> None:
        pause_s = _PAUSE_S
        while not self._stopping.is_set():
            message = self._message()
            if message is None:
                if self._stopping.is_set():
                    return
                self._restart(pause_s)
                pause_s = min(2 * pause_s, _MOST_PAUSE_S)
                continue
            if isinstance(message, Ready):
                self.state, pause_s = "ready", _PAUSE_S
            elif isinstance(message, Refused):
                self._end(UserError(message.message))
                return
            elif message.served != self._served:
                self._end(
                    UserError("weights: changed while they were served; start the server again")
                )
                return

    def _restart(self, pause_s: float) -> None:
        code = self._running.end(_LAST_WORDS_S)
        print(f"serve: the worker ended with {code} and is started again", file=sys.stderr)
        self.state = "restarting"
        self._release_dead()
        self._stopping.wait(pause_s)
        with self._starting:
            if not self._stopping.is_set():
                self.restarts += 1
                self._running = self._start()

    def _release_dead(self) -> None:
        """Queues the dead worker's jobs again, as soon as the queue can be written."""
        while not self._stopping.is_set():
            try:
                self._store.release(self._running.name, died=True)
                return
            except sqlite3.OperationalError as error:
                print(
                    f"serve: the queue cannot be written now ({error}); the worker is started "
                    "again when it can be",
                    file=sys.stderr,
                )
                self._stopping.wait(_QUEUE_S)

    def _end(self, problem: Exception) -> None:
        self.problem = problem
        self._stopping.set()
        self._on_end()


def retire_regularly(retire: Callable[[], None], over: threading.Event, every_s: float) -> None:
    """Calls a function again and again until an event is set; an error of it is only reported."""
    while not over.wait(every_s):
        try:
            retire()
        except Exception as error:
            print(f"serve: old videos could not be removed: {error}", file=sys.stderr)
            time.sleep(1)
