"""Keeps one worker running: starts it, starts it again when it dies, stops it. No PyTorch here."""

from __future__ import annotations

import multiprocessing
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from infer.options import Options
from infer.serve import worker
from infer.serve.jobs import JobStore
from infer.serve.names import named_loras
from infer.serve.options import Served, ServeOptions, State
from lightx2v_sgmd.system.errors import RunError, UserError

STOP_S: Final = 30.0
"""Seconds that a worker may take to stop after its current step."""
_MOST_PAUSE_S: Final = 30.0
_PAUSE_S: Final = 0.5


@dataclass
class _Running:
    name: str
    process: multiprocessing.process.BaseProcess
    pipe: Connection


class Supervisor:
    """The worker, as the server sees it.

    Args:
        weights: The students by name.
        engine: The engine's options.
        options: The server's options.
        store: The queue.
        on_end: Called when the worker refuses to run; the server then stops.
    """

    def __init__(
        self,
        weights: Mapping[str, Path],
        engine: Options,
        options: ServeOptions,
        store: JobStore,
        on_end: Callable[[], None],
    ) -> None:
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
        return self._running.process.pid

    def open(self) -> tuple[Served, ...]:
        """Waits until the weights are found whole, and watches the worker from then on.

        Raises:
            UserError: the weights or options cannot be used.
            RunError: the worker died.
        """
        try:
            message = self._running.pipe.recv()
        except EOFError:
            self._running.process.join()
            raise RunError(
                f"the worker ended with {self._running.process.exitcode} while it opened the "
                "weights; its messages are above"
            ) from None
        if isinstance(message, worker.Refused):
            self._running.process.join()
            raise UserError(message.message)
        assert isinstance(message, worker.Opened), "a worker opens the weights first"
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
        if self.state == "ready":
            running.process.join(STOP_S)
        if running.process.is_alive():
            running.process.kill()
            running.process.join()
        if self._watcher.is_alive():
            self._watcher.join()
        self._store.release(running.name, died=False)
        self.state = "stopped"

    def _start(self) -> _Running:
        name = secrets.token_hex(8)
        ours, theirs = self._spawn.Pipe()
        order = worker.Order(
            name,
            dict(self._weights),
            self._engine,
            self._options.batch_size,
            self._options.data,
            self._loras,
        )
        process = self._spawn.Process(target=worker.run, args=(order, theirs), daemon=True)
        process.start()
        theirs.close()
        return _Running(name, process, ours)

    def _watch(self) -> None:
        pause_s = _PAUSE_S
        while not self._stopping.is_set():
            try:
                message = self._running.pipe.recv()
            except (EOFError, OSError):
                self._running.process.join()
                if self._stopping.is_set():
                    return
                self._restart(pause_s)
                pause_s = min(2 * pause_s, _MOST_PAUSE_S)
                continue
            if isinstance(message, worker.Ready):
                self.state, pause_s = "ready", _PAUSE_S
            elif isinstance(message, worker.Refused):
                self._end(UserError(message.message))
                return
            elif message.served != self._served:
                self._end(UserError("weights: changed while they were served; start it again"))
                return

    def _restart(self, pause_s: float) -> None:
        code = self._running.process.exitcode
        print(f"serve: the worker ended with {code} and is started again", file=sys.stderr)
        self.state = "restarting"
        self._store.release(self._running.name, died=True)
        self._stopping.wait(pause_s)
        with self._starting:
            if not self._stopping.is_set():
                self.restarts += 1
                self._running = self._start()

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
