"""Makes the videos of a server's queue on the machines of a Ray cluster.

The engines are the replicas of a Ray Serve deployment, one on each GPU. Each batch of the queue is
one request to it, and Ray starts and ends replicas by the number of requests that wait. The queue
stays where the server is, so a batch whose replica dies is queued again, as for a worker here.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from infer.cluster import engine as remote
from infer.cluster.joining import (
    engine_count,
    everywhere,
    join,
    options_everywhere,
    share_of_machine,
)
from infer.options import Options
from infer.serve.jobs import JobStore, VideoJob
from infer.serve.names import named_loras
from infer.serve.options import Served, ServeOptions, State
from infer.serve.results import Results
from lightx2v_sgmd.outputs import appearing
from lightx2v_sgmd.system.errors import RunError, UserError, first_line

_POLL_S: Final = 0.05
_WAITING_EACH: Final = 2
"""Requests that each possible replica has, so that Ray sees that more wait than are made."""
_STOP_S: Final = 20.0
_PAUSE_S: Final = 0.5
_MOST_PAUSE_S: Final = 30.0


class RayWorkers:
    """The engines of a cluster, as the server sees them; it has what ``Supervisor`` has.

    Args:
        weights: The students by name.
        engine: The engine's options.
        options: The server's options.
        store: The queue.
        on_end: Called when the engines cannot be started; the server then stops.
    """

    def __init__(
        self,
        weights: Mapping[str, Path],
        engine: Options,
        options: ServeOptions,
        store: JobStore,
        on_end: Callable[[], None],
    ) -> None:
        self._weights = {name: everywhere(path) for name, path in weights.items()}
        self._engine = options_everywhere(engine)
        self._options, self._on_end = options, on_end
        self._loras = named_loras(options.lora_folder)
        self._store, self._results = store, Results(options.data)
        self._stopping = threading.Event()
        self._counting = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._responses: dict[str, Any] = {}
        self._handles: list[Any] = []
        self.state: State = "loading"
        self.restarts = 0
        self.problem: Exception | None = None
        self.name = _name_of(options.data)
        self._ray = join("--ray")
        self._share = share_of_machine(self._ray, engine.device)
        self._most = options.replicas or engine_count(self._ray, self._share)

    @property
    def _values(self) -> tuple[Any, ...]:
        return self._weights, self._engine, self._loras, self._options.batch_size or 1

    def open(self) -> tuple[Served, ...]:
        """Checks the weights on one of the machines, and starts the engines.

        Engines that a killed server of the same folder left in the cluster are ended first: they
        would keep their GPUs.

        Raises:
            UserError: the weights or options cannot be used there.
        """
        self._end_engines()
        task = self._ray.remote(**self._share)(remote.check)
        found = self._ray.get(task.remote(*self._values))
        if isinstance(found, str):
            raise UserError(found)
        served: tuple[Served, ...] = found
        starting = threading.Thread(target=self._start, name="start the engines", daemon=True)
        self._threads.append(starting)
        starting.start()
        return served

    def _start(self) -> None:
        from ray import serve

        deployment = serve.deployment(
            name="engine",
            ray_actor_options=self._share,
            max_ongoing_requests=1,
            autoscaling_config={
                "min_replicas": 1,
                "max_replicas": self._most,
                "target_ongoing_requests": 1,
                "upscale_delay_s": 1,
            },
        )(remote.Engine)
        try:
            serve.start(proxy_location="Disabled")  # Ray's own HTTP server, which would take a port
            handle = serve.run(deployment.bind(*self._values), name=self.name, route_prefix=None)
        except Exception as error:
            if not self._stopping.is_set():
                self.problem = RunError(
                    f"--ray: the engines could not be started ({error}); look at `ray status`, "
                    "then start the server again"
                )
                self._on_end()
            return
        self.state = "ready"
        for number in range(_WAITING_EACH * self._most):
            thread = threading.Thread(
                target=self._work, args=(handle,), name=f"send batches {number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _work(self, handle: Any) -> None:
        """Sends batch after batch, and takes what comes back."""
        sending, pause_s = handle.options(stream=True), _PAUSE_S
        self._handles.append(sending)
        while not self._stopping.is_set():
            batch = secrets.token_hex(8)  # what a worker's start is elsewhere
            jobs = self._store.claim(batch, lambda job: self._options.batch_size or 1)
            if not jobs:
                self._stopping.wait(_POLL_S)
                continue
            try:
                images = self._images(jobs)
                response = self._responses[batch] = sending.make.remote(jobs, images)
                self._take(batch, jobs, response)
            except Exception as error:
                if batch in self._responses:  # the engine may be well, and the disk here full
                    self._cancel(self._responses[batch])
                self._store.release(batch, died=not self._stopping.is_set())
                if not self._stopping.is_set():
                    print(
                        f"serve: an engine is gone ({first_line(error)}); what it made is queued "
                        "again",
                        file=sys.stderr,
                        flush=True,
                    )
                    with self._counting:
                        self.restarts += 1
                    # Without a pause a lost cluster would fail the whole queue at once.
                    self._stopping.wait(pause_s)
                    pause_s = min(2 * pause_s, _MOST_PAUSE_S)
            else:
                self._store.release(batch, died=False)
                pause_s = _PAUSE_S
            finally:
                self._responses.pop(batch, None)

    def _images(self, jobs: list[VideoJob]) -> dict[str, bytes]:
        """The images of jobs; that of a job which was deleted meanwhile is not there."""
        images = {}
        for job in jobs:
            if job.image is not None:
                with suppress(FileNotFoundError):
                    images[job.id] = self._results.image(job.id).read_bytes()
        return images

    def _take(self, batch: str, jobs: list[VideoJob], response: Any) -> None:
        """Takes a batch's events; cancels it when nobody wants it, or when the server stops."""
        wanted = {job.id for job in jobs}
        for event in response:
            if isinstance(event, remote.Advanced):
                wanted = self._store.advance(batch, event.names, event.percent)
            elif isinstance(event, remote.Shown):
                self._results.show(event.name, event.picture)
            elif isinstance(event, remote.Failed):
                self._store.fail(batch, event.name, event.reason)
                self._results.remove_sources(event.name)
            elif isinstance(event, remote.Finished):
                self._finish(batch, event)
            if self._stopping.is_set() or not wanted:
                self._cancel(response)
                return

    def _cancel(self, response: Any) -> None:
        with suppress(Exception):
            response.cancel()

    def _finish(self, batch: str, made: remote.Finished) -> None:
        """Writes a video, which appears whole."""
        file = self._results.video(made.name, made.suffix)
        if self._store.get(made.name) is not None:
            with appearing(file) as temporary:
                temporary.write_bytes(made.content)
            if not self._store.complete(batch, made.name, made.seconds, len(made.content)):
                self._results.remove(made.name)
        self._results.remove_sources(made.name)

    def stop(self) -> None:
        """Ends the engines; what they were making is queued again."""
        self._stopping.set()
        for response in list(self._responses.values()):
            self._cancel(response)
        until = time.monotonic() + _STOP_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for handle in self._handles:  # it would go on asking a cluster that this process has left
            with suppress(Exception):
                handle.shutdown()
        self._end_engines()
        self._store.release(None, died=False)
        self._ray.shutdown()
        self.state = "stopped"

    def _end_engines(self) -> None:
        from ray import serve

        with suppress(Exception):  # Ray Serve does not run there, or has none of them
            serve.delete(self.name)


def _name_of(data: Path) -> str:
    """The name of a server's engines in the cluster: one for each folder of each machine."""
    owner = f"{socket.gethostname()}:{data.absolute()}"
    return f"lightx2v-sgmd-{hashlib.sha256(owner.encode()).hexdigest()[:16]}"
