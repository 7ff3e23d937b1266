"""Makes the videos of the queue, batch by batch."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from infer.serve.jobs import VideoJob
from infer.serve.results import Results
from infer.serve.work.messages import ServerStopped
from infer.serve.work.previews import Previews
from infer.serve.work.students import StudentSource
from lightx2v_sgmd.system.errors import UserError, is_full_disk, short_line

if TYPE_CHECKING:
    from torch import Tensor

    from lightx2v_sgmd.families.conditioning import Embedding
    from lightx2v_sgmd.files.video import Frames


IDLE_S: Final = 0.02
"""Seconds after which an idle worker asks the queue again."""
SPACE_S: Final = 5.0
"""Seconds until a worker tries again what a full disk has stopped."""


class Desk(Protocol):
    """Gives a worker its jobs and takes their results; see ``JobStore``."""

    def claim(self, worker: str, together: Callable[[VideoJob], int]) -> list[VideoJob]:
        """Gives the worker the next batch."""

    def get(self, name: str) -> VideoJob | None:
        """A job; None if nobody wants it any more."""

    def advance(self, worker: str, names: Sequence[str], percent: int) -> set[str]:
        """Notes progress; returns the jobs that are still wanted."""

    def complete(self, worker: str, name: str, seconds: float, size: int) -> bool:
        """Notes that a video is there; False if the job is no longer this worker's."""

    def fail(self, worker: str, name: str, reason: str) -> None:
        """Notes that a job cannot be made."""


@dataclass
class Maker:
    """Makes the videos of the queue, batch by batch."""

    students: StudentSource
    store: Desk
    results: Results
    worker: str
    pipe: Connection
    previews: Previews | None = None
    _finished: set[str] = field(default_factory=set)
    _waits_for_space: bool = False

    def work(self, batch_size: int | None) -> None:
        """Works until the server says stop; what a full disk stops is tried again until it works.

        Raises:
            ServerStopped: it did.
        """
        self._waits_for_space = True
        left: list[VideoJob] = []
        while True:
            try:
                left = jobs = left or self.store.claim(
                    self.worker,
                    lambda job: batch_size or self.students.batch_for(job.model, job.size),
                )
                if jobs:
                    self.make(jobs)
                left = []
            except ServerStopped:
                raise
            except Exception as error:
                if not is_full_disk(error):
                    raise
                left = [job for job in left if job.id not in self._finished]
                print(
                    f"serve: the disk of {self.results.folder} is full; accepted videos wait "
                    "until there is space",
                    file=sys.stderr,
                    flush=True,
                )
                self._wait_for_server(SPACE_S)
                continue
            self._wait_for_server(0 if jobs else IDLE_S)

    def _must_wait(self, error: Exception) -> bool:
        """True if a job is not to blame for an error, and is made when there is space again."""
        return self._waits_for_space and is_full_disk(error)

    def _wait_for_server(self, wait_s: float) -> None:
        """Waits a little for the server to say stop.

        Raises:
            ServerStopped: it said stop.
        """
        if self.pipe.poll(wait_s):
            with suppress(EOFError):
                self.pipe.recv()
            raise ServerStopped

    def make(self, jobs: list[VideoJob]) -> None:
        """Makes one batch."""
        self._finished.clear()
        self._make(jobs)

    def _make(self, jobs: list[VideoJob]) -> None:
        """One batch; if it fails, each of it alone."""
        try:
            self._make_together(jobs)
        except _NobodyWants:
            pass
        except ServerStopped:
            raise
        except Exception as error:
            if self._must_wait(error):
                raise
            left = [job for job in jobs if job.id not in self._finished]
            if len(jobs) > 1:
                for job in left:
                    self._make([job])
            else:
                self._fail(jobs[0], error)

    def _make_together(self, jobs: list[VideoJob]) -> None:
        start = time.perf_counter()
        student = self.students.get(jobs[0].model, jobs[0].lora, jobs[0].size, len(jobs))
        steps = len(student.schedule) + 1  # decoding counts as one
        names = [job.id for job in jobs]

        def on_step(step: int, x_t: Tensor) -> None:
            self._wait_for_server(0)
            if not self.store.advance(self.worker, names, 100 * (step + 1) // steps):
                raise _NobodyWants
            if self.previews is not None:
                self.previews.step(jobs, step, x_t)

        if self.previews is not None:
            self.previews.begin(student, jobs)
        rows: Sequence[Embedding] = student.encode([job.prompt for job in jobs], quiet=True)
        if jobs[0].image is not None:  # then all have one; nothing of them is kept
            images = [(self.results.image(job.id), job.size) for job in jobs]
            rows = student.with_images(rows, images, cached=False)
        latents = student.denoise(rows, [job.seed for job in jobs], jobs[0].size, on_step)
        denoised_s = time.perf_counter() - start
        decoded = student.decode_each(latents)
        for job, one in zip(jobs, latents, strict=True):
            started = time.perf_counter()
            chunks = next(decoded)
            try:
                if not one.isfinite().all():
                    raise FloatingPointError("the network gave values that are not finite")
                file = self.results.video(job.id, student.suffix)
                whole = self._write_and_learn(job, file, one, chunks)
            except (ServerStopped, _NobodyWants):
                raise
            except Exception as error:
                if self._must_wait(error):
                    raise
                self._fail(job, error)
                continue
            if whole:
                seconds = denoised_s / len(jobs) + time.perf_counter() - started
                size = file.stat().st_size
                if not self.store.complete(self.worker, job.id, seconds, size):
                    self.results.remove(job.id)
            self.results.remove_sources(job.id)
            self._finished.add(job.id)

    def _write_and_learn(
        self, job: VideoJob, file: Path, latents: Any, chunks: Iterator[Frames]
    ) -> bool:
        """Writes a video as ``_write`` does, and learns its colours."""
        if self.previews is None or not self.previews.learns(job):
            return self._write(job, file, chunks)
        means = self.previews.means(latents)
        whole = self._write(job, file, means.watching(chunks))
        if whole:
            self.previews.learn(job, latents, means)
        return whole

    def _write(self, job: VideoJob, file: Path, chunks: Iterator[Frames]) -> bool:
        """Writes a video, which appears whole; False if nobody wants it any more."""
        from infer.batch.writing import writing
        from lightx2v_sgmd.outputs import move, sync_folder

        if not self._wanted(job):
            return False

        def appear(temporary: Path) -> None:
            move(temporary, file)
            sync_folder(file.parent)

        try:
            with writing(file, job.fps, appear) as pending:
                for chunk in chunks:
                    self._wait_for_server(0)
                    if not self._wanted(job):
                        raise _NobodyWants
                    pending.put(chunk)
            pending.wait()
        except _NobodyWants:
            return False
        return True

    def _wanted(self, job: VideoJob) -> bool:
        return self.store.get(job.id) is not None

    def _fail(self, job: VideoJob, error: Exception) -> None:
        """Notes a failure; what is not meant for the client goes to the server's log."""
        self.results.remove(job.id)
        if isinstance(error, UserError):
            reason = short_line(str(error).replace(str(self.results.folder), "the server"), 500)
        else:
            reason = "internal error; the server's log says more"
        print(f"serve: {job.id} failed: {error}", file=sys.stderr, flush=True)
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        self.store.fail(self.worker, job.id, reason)
        self._finished.add(job.id)


class _NobodyWants(Exception):
    """All videos of a batch were deleted."""
