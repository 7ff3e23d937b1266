"""Makes videos batch by batch with a loaded student; where they go is somebody else's business."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from infer.batch.requests import Request, batches
from infer.batch.writing import Pending, writing
from infer.engine import Student
from infer.parts import NETWORK
from infer.result import Cancelled
from infer.stopping import Cancel, OnStep, stoppable
from infer.text import TEXT_ENCODER
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.files.video import Frames
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.console import Bar, progress

Texts = Callable[[Request], Embedding]
"""Gives what the network is told of a video; it may be read from a file each time."""


class Takes(Protocol):
    """A taker of finished videos, see ``ledger.Ledger``."""

    def start(self) -> None:
        """Is called before the weights are loaded."""

    def file(self, request: Request) -> Path:
        """The file of a video."""

    def appear(self, request: Request, temporary: Path) -> None:
        """Takes a finished video, which has a temporary name."""

    def done(self, request: Request) -> None:
        """Is called when a video was taken."""

    def failed(self, request: Request, error: Exception) -> None:
        """Is called when a video could not be made."""


@dataclass
class Making:
    """Makes videos and gives them away as they are finished; one that fails stops no other.

    Attributes:
        fps: Frames per second of the files.
        takes: The taker of the videos.
        ranks: The processes that make each video together.
        cancel: Asked between steps and between chunks of frames whether to stop.
        quiet: Show no progress bar.
        timings: Wall time in seconds by stage, which is added to.
    """

    fps: float
    takes: Takes
    ranks: Ranks
    cancel: Cancel | None = None
    quiet: bool = True
    timings: dict[str, float] = field(default_factory=dict)
    _writing: list[tuple[Request, Pending]] = field(default_factory=list)

    def go(
        self,
        load: Callable[[], Student],
        requests: Sequence[Request],
        batch_size: int | None,
        done: int = 0,
    ) -> None:
        """Makes the videos of some requests.

        Args:
            load: Gives the student.
            requests: The videos.
            batch_size: Videos of one size that are made together; None leaves it to the engine.
            done: The number of videos that were there before, for the progress bar.
        """
        start = time.perf_counter()
        self.takes.start()
        student = load()
        self.timings["load"] = time.perf_counter() - start
        with student.timed(self.timings, "text"):
            texts = student.encode([request.prompt for request in requests], self.quiet)
            images = [(request.image, request.size) for request in requests]
            rows = student.with_images(texts, images, self.quiet)
        student.release(TEXT_ENCODER)
        order = {request.name: index for index, request in enumerate(requests)}
        limit = batch_size or min(student.batch_for(request.size) for request in requests)
        units = len(student.schedule) + 1
        total = units * (len(requests) + done)
        with progress(total, "generating", self.quiet, done=units * done) as bar:
            try:
                groups = batches(requests, limit)
                for batch in groups:
                    self._make(
                        student, batch, lambda r: rows[order[r.name]], bar, last=batch is groups[-1]
                    )
            finally:
                with student.timed(self.timings, "write"):
                    self._collect(keep=0)

    def _make(
        self,
        student: Student,
        batch: list[Request],
        texts: Texts,
        bar: Bar,
        last: bool,
    ) -> None:
        """One batch; if it fails, each of it alone. After the last one the network may go."""

        def on_step(step: int, x_t: Tensor) -> None:
            bar.advance(len(batch))
            if self.cancel is not None and self.cancel():
                raise Cancelled

        try:
            with student.timed(self.timings, "denoise"):
                latents = _denoise(student, batch, texts, on_step)
        except Cancelled:
            raise
        except Exception as error:
            if self.ranks.size > 1:  # the others wait inside the network: it cannot go on
                raise
            if len(batch) > 1:
                for request in batch:
                    self._make(student, [request], texts, bar, last and request is batch[-1])
            else:
                self.takes.failed(batch[0], error)
            return
        if last:
            student.release(NETWORK)
        decoded = student.decode_each(latents)
        for request, one in zip(batch, latents, strict=True):
            try:
                with student.timed(self.timings, "decode"):
                    chunks = next(decoded)
                    if not one.isfinite().all():
                        raise FloatingPointError("the network gave values that are not finite")
                    self._write(request, stoppable(chunks, self.cancel))
            except Cancelled:
                raise
            except Exception as error:
                self.takes.failed(request, error)
            bar.advance(1, request.name)

    def _write(self, request: Request, chunks: Iterator[Frames]) -> None:
        """Gives a video's frames to the thread that writes it."""
        if not self.ranks.first:
            deque(chunks, maxlen=0)  # this process's tiles
            return
        file, appear = self.takes.file(request), partial(self.takes.appear, request)
        with writing(file, self.fps, appear) as pending:
            for chunk in chunks:
                try:
                    pending.put(chunk)
                except Exception:
                    if self.ranks.size > 1:
                        deque(chunks, maxlen=0)  # the others send their tiles to the end
                    raise
        self._writing.append((request, pending))
        self._collect(keep=1)

    def _collect(self, keep: int) -> None:
        """Waits for all but the last ``keep`` videos to be written."""
        while len(self._writing) > keep:
            request, pending = self._writing.pop(0)
            try:
                pending.wait()
                self.takes.done(request)
            except Exception as error:
                self.takes.failed(request, error)


def _denoise(student: Student, batch: Sequence[Request], texts: Texts, on_step: OnStep) -> Tensor:
    rows = [texts(request) for request in batch]
    return student.denoise(rows, [request.seed for request in batch], batch[0].size, on_step)
