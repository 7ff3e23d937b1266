"""The worker of a server on the machines of a cluster, without the server's queue.

Jobs come with a call and leave as a stream of events: progress, previews, videos, failures.
"""

from __future__ import annotations

import asyncio
import queue
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from infer.options import Options
from infer.serve.jobs import VideoJob
from infer.serve.options import Served
from infer.serve.results import PREVIEWS, VIDEOS, Results
from infer.serve.work.maker import Maker
from infer.serve.work.previews import Previews
from infer.serve.work.students import Students, StudentSource
from infer.serve.work.worker import served_as
from lightx2v_sgmd.system.errors import UserError


@dataclass(frozen=True)
class Advanced:
    """Jobs have done more of their steps."""

    names: tuple[str, ...]
    percent: int


@dataclass(frozen=True)
class Shown:
    """A job has a new preview."""

    name: str
    picture: bytes


@dataclass(frozen=True)
class Finished:
    """A job's video."""

    name: str
    seconds: float
    content: bytes
    suffix: str = ".mp4"


@dataclass(frozen=True)
class Failed:
    """A job cannot be made."""

    name: str
    reason: str


Event = Advanced | Shown | Finished | Failed


def check(
    weights: Mapping[str, Path], engine: Options, loras: Mapping[str, Path], batch: int
) -> tuple[Served, ...] | str:
    """Checks all weights on one of the machines; returns their facts, or why they are refused."""
    try:
        fits = Students(weights, engine, loras, batch).check()
    except UserError as error:
        return str(error)
    return tuple(served_as(name, fit) for name, fit in fits.items())


class Engine:
    """Students in a process of a cluster, which makes one batch at a time.

    Args:
        weights: As for ``Students``.
        engine: As for ``Students``.
        loras: As for ``Students``.
        batch: As for ``Students``.
    """

    def __init__(
        self,
        weights: Mapping[str, Path],
        engine: Options,
        loras: Mapping[str, Path],
        batch: int,
    ) -> None:
        students = Students(weights, engine, loras, batch)
        students.check()
        students.get(next(iter(weights)), None)
        self._use(students)

    def _use(self, students: StudentSource, previews: bool = True) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._students, self._busy = students, threading.Lock()
        self._desk = EventDesk(Path(self._folder.name))
        self._pipe, self._other_end = Pipe()  # nobody says stop through it
        self._maker = Maker(
            students,
            self._desk,
            self._desk.results,
            "ray",
            self._pipe,
            Previews(self._desk.results) if previews else None,
        )

    async def make(
        self, jobs: Sequence[VideoJob], images: Mapping[str, bytes] | None = None
    ) -> AsyncIterator[Event]:
        """Makes jobs of one size, weights and LoRA.

        When the caller stops listening, the batch stops after its current step.

        Args:
            jobs: The jobs.
            images: The image files that they start from, by the jobs' names.
        """
        batch = _Batch(list(jobs), dict(images or {}))
        thread = threading.Thread(target=self._make, args=(batch,), daemon=True)
        thread.start()
        try:
            while (event := await asyncio.to_thread(batch.events.get)) is not None:
                yield event
        finally:
            batch.unwanted.set()

    def _make(self, batch: _Batch) -> None:
        with self._busy:
            try:
                self._desk.begin(batch)
                for name, content in batch.images.items():
                    self._desk.results.keep_image(name, content)
                self._maker.make(batch.jobs)
            finally:
                for name in batch.images:
                    self._desk.results.remove_sources(name)
                batch.events.put(None)


@dataclass
class _Batch:
    """Jobs, what happens to them, and the mark that nobody wants them any more."""

    jobs: list[VideoJob]
    images: dict[str, bytes] = field(default_factory=dict)
    events: queue.Queue[Event | None] = field(default_factory=queue.Queue)
    unwanted: threading.Event = field(default_factory=threading.Event)


class EventDesk:
    """Takes from a worker what a queue and a folder would take, and passes it on as events.

    Args:
        folder: A temporary folder, in which videos are written before they are passed on.
    """

    def __init__(self, folder: Path) -> None:
        self.results = _PassedOn(folder, self)
        for name in (VIDEOS, PREVIEWS):
            (folder / name).mkdir(exist_ok=True)
        self._batch = _Batch([])

    def begin(self, batch: _Batch) -> None:
        """Passes on what happens to these jobs from now on."""
        self._batch = batch

    def put(self, event: Event) -> None:
        """Passes an event on."""
        self._batch.events.put(event)

    def claim(self, worker: str, together: Any) -> list[VideoJob]:
        """Gives nothing: jobs come with a call."""
        return []

    def get(self, name: str) -> VideoJob | None:
        """A job of the batch; None if nobody wants the batch any more."""
        if self._batch.unwanted.is_set():
            return None
        return next((job for job in self._batch.jobs if job.id == name), None)

    def advance(self, worker: str, names: Sequence[str], percent: int) -> set[str]:
        """Passes progress on; returns the jobs that are still wanted."""
        if self._batch.unwanted.is_set():
            return set()
        self.put(Advanced(tuple(names), percent))
        return set(names)

    def complete(self, worker: str, name: str, seconds: float, size: int) -> bool:
        """Passes a video on."""
        file = self.results.found(name)
        assert file is not None, "a job is completed after its file is there"
        self.put(Finished(name, seconds, file.read_bytes(), file.suffix))
        with suppress(OSError):
            file.unlink()
        return True

    def fail(self, worker: str, name: str, reason: str) -> None:
        """Passes a failure on."""
        self.put(Failed(name, reason))


@dataclass(frozen=True)
class _PassedOn(Results):
    """A folder of videos whose previews are passed on."""

    desk: EventDesk

    def show(self, name: str, picture: bytes) -> None:
        """Passes a preview on."""
        self.desk.put(Shown(name, picture))
