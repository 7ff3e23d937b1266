"""The process that owns the device: it loads the student, and makes the videos of the queue.

It says what it found through a pipe: ``Opened``, ``Ready``, ``Refused``. It stops between steps
when the pipe says so, and at once when the server is gone; what it had claimed is then queued
again.

T latent frames, h, w latent height and width, C channels.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from infer.options import Options
from infer.serve.jobs import Job, JobStore
from infer.serve.options import Served
from infer.serve.results import Results
from infer.serve.students import Fit, Students, StudentSource, WorkingStudent
from lightx2v_sgmd.system.errors import UserError, short_line

if TYPE_CHECKING:
    from torch import Tensor

    from infer.serve.preview import FrameMeans, LinearDecoder
    from lightx2v_sgmd.files.video import Frames
    from lightx2v_sgmd.parallel.ranks import Ranks
    from lightx2v_sgmd.rollout import FreshNoise
    from lightx2v_sgmd.schedule import Schedule

PREVIEW_S: Final = 0.5
"""The least time between two previews: a page asks every second, and each costs processor time."""
LEARN_FROM: Final = 8
"""Videos of each weights whose colours are learned: more would cost time and change little."""
IDLE_S: Final = 0.02
"""How often an idle worker looks into the queue."""


@dataclass(frozen=True)
class Order:
    """What a worker is started with.

    Attributes:
        worker: The name of this start.
        weights: The students by name.
        engine: The engine's options.
        batch_size: Videos of one size made together; None leaves it to the engine.
        folder: The server's folder.
        loras: The files of the LoRAs that requests may name.
        nproc: The number of processes that make a video together.
    """

    worker: str
    weights: dict[str, Path]
    engine: Options
    batch_size: int | None
    folder: Path
    loras: dict[str, Path] = field(default_factory=dict)
    nproc: int = 1


@dataclass(frozen=True)
class Opened:
    """The weights are whole and can run here."""

    served: tuple[Served, ...]


@dataclass(frozen=True)
class Ready:
    """The weights are loaded."""


@dataclass(frozen=True)
class Refused:
    """The weights or options cannot be used; the message is for the user."""

    message: str


class Stopped(Exception):
    """The server said stop."""


def run(order: Order, pipe: Connection, followers: Sequence[Connection] = ()) -> None:
    """The whole life of a worker; see the module.

    Args:
        order: What it is started with.
        pipe: To the server.
        followers: To the other processes that make videos together with this one.
    """
    _live_with_the_server()
    try:
        with _ranks(order, followers) as ranks:
            _work(order, pipe, ranks, followers)
    except UserError as error:
        pipe.send(Refused(str(error)))


def run_follower(order: Order, leader: Connection, rank: int) -> None:
    """The whole life of another process of a group; see ``group``.

    Args:
        order: What the worker is started with.
        leader: From the first process.
        rank: The number of this process.
    """
    from infer.serve.group import BROKEN, follow

    _live_with_the_server()
    batch = order.batch_size or 1
    try:
        follow(order.weights, order.engine, order.loras, batch, leader, rank, order.nproc)
    except (EOFError, UserError):
        pass  # the first process is gone, or refuses it as well
    except BaseException:
        traceback.print_exc()
        os._exit(BROKEN)  # the others may wait in a collective, and a usual end would as well


@contextmanager
def _ranks(order: Order, followers: Sequence[Connection]) -> Iterator[Ranks | None]:
    if not followers:
        yield None
        return
    from infer.serve.group import leading

    with leading(order.engine.device, followers) as ranks:
        yield ranks


def _work(
    order: Order, pipe: Connection, ranks: Ranks | None, followers: Sequence[Connection]
) -> None:
    """Loads the first weights, and makes videos until the server says stop."""
    from infer.serve.group import Leader

    results = Results(order.folder)
    own = Students(order.weights, order.engine, order.loras, order.batch_size or 1, ranks)
    fits = own.check()
    students: Students | Leader = own if ranks is None else Leader(own, ranks, followers)
    pipe.send(Opened(tuple(served_as(name, fit) for name, fit in fits.items())))
    students.get(next(iter(order.weights)), None)
    with closing(JobStore(results.queue)) as store:
        results.sweep(store)
        pipe.send(Ready())
        maker = Maker(students, store, results, order.worker, pipe, Previews(results))
        with suppress(Stopped):
            maker.work(order.batch_size)
        store.release(order.worker, died=False)
    if isinstance(students, Leader):
        students.stop()


def _live_with_the_server() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach both; the server says stop
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_the_server, name="watch the server", daemon=True).start()


def _die_with_the_server() -> None:
    """Ends this process as soon as the server's has ended, whatever it is doing.

    Its files are temporary until they are whole, so nothing half-written is left in their place.
    """
    server = parent_process()
    assert server is not None, "a worker is started by a server"
    wait([server.sentinel])
    os._exit(3)


def served_as(name: str, fit: Fit) -> Served:
    """The facts of checked weights that requests are checked against."""
    checked = fit.checked
    video = checked.video
    return Served(
        name=name,
        trained=(video.height, video.width, video.num_frames) if video else None,
        fps=checked.fps,
        steps=len(checked.schedule),
        shift=checked.schedule.shift,
        rules=checked.model.size_rules,
        loras=fit.loras,
    )


class Previews:
    """Shows unfinished videos after each step, in colours that finished ones have taught.

    Args:
        results: Where previews are written.
        every_s: The least seconds between the previews of two steps.
    """

    def __init__(self, results: Results, every_s: float = PREVIEW_S) -> None:
        self._results, self._every_s = results, every_s
        self._shown_at = -math.inf
        self._decoders: dict[str, LinearDecoder] = {}
        self._states: Tensor | None = None
        self._schedule: Schedule | None = None
        self._fresh_noise: FreshNoise | None = None

    def begin(self, student: WorkingStudent, jobs: list[Job]) -> None:
        """Takes the noise that a batch starts from, and the student's steps."""
        import torch

        from lightx2v_sgmd.sampling.sampler import fresh_noise_for

        shape = student.latent_shape(*jobs[0].size)
        seeds = [job.seed for job in jobs]
        self._states = torch.stack([student.noise(seed, shape) for seed in seeds])
        self._schedule = student.schedule
        self._fresh_noise = fresh_noise_for(student.model, seeds, shape)

    def step(self, jobs: list[Job], step: int, x_t: Tensor) -> None:
        """Writes the previews of a batch after a step, from the states before and after it."""
        from infer.serve.preview import animation, data_prediction, renoised_prediction

        schedule = self._schedule
        if schedule is None:
            return
        sigma, following = schedule.times[step : step + 2].tolist()
        after, before = x_t.detach().float().cpu(), self._states
        self._states = after
        now = time.monotonic()
        if before is None or self._fresh_noise is None or now - self._shown_at < self._every_s:
            return
        if not self._decoder(jobs[0]).videos:
            return
        self._shown_at = now
        if schedule.solver == "renoise":
            predicted = renoised_prediction(after, self._fresh_noise(step), following)
        else:
            predicted = data_prediction(before, after, sigma, following)
        decoder = self._decoder(jobs[0])
        for job, x0 in zip(jobs, predicted, strict=True):
            pictures = decoder.decode(x0)
            if pictures is not None:
                self._results.show(job.id, animation(pictures, job.fps))

    def learns(self, job: Job) -> bool:
        """True if the map of a job's weights still learns."""
        return self._decoder(job).videos < LEARN_FROM

    def means(self, latents: Tensor) -> FrameMeans:
        """Takes the frames of a video whose latents are ``[C, T, h, w]``."""
        from infer.serve.preview import FrameMeans

        return FrameMeans(latents.shape[1:])

    def learn(self, job: Job, latents: Tensor, means: FrameMeans) -> None:
        """Learns from a video that is finished."""
        colours = means.colours
        if colours is not None:
            self._decoder(job).learn(latents, colours)

    def _decoder(self, job: Job) -> LinearDecoder:
        """The map of a job's weights: others may have latents of another kind."""
        from infer.serve.preview import LinearDecoder

        return self._decoders.setdefault(job.model, LinearDecoder())


class Desk(Protocol):
    """Where a worker's jobs come from and their results go, see ``JobStore``."""

    def claim(self, worker: str, together: Callable[[Job], int]) -> list[Job]:
        """Gives the worker the next batch."""

    def get(self, name: str) -> Job | None:
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

    def work(self, batch_size: int | None) -> None:
        """Works until the server says stop.

        Raises:
            Stopped: it did.
        """
        while True:
            jobs = self.store.claim(
                self.worker,
                lambda job: batch_size or self.students.batch_for(job.model, job.size),
            )
            if jobs:
                self.make(jobs)
            self._look(0 if jobs else IDLE_S)

    def _look(self, wait_s: float) -> None:
        """Waits a little for a word of the server.

        Raises:
            Stopped: it said stop.
        """
        if self.pipe.poll(wait_s):
            with suppress(EOFError):
                self.pipe.recv()
            raise Stopped

    def make(self, jobs: list[Job]) -> None:
        """Makes one batch."""
        self._finished.clear()
        self._make(jobs)

    def _make(self, jobs: list[Job]) -> None:
        """One batch; if it fails, each of it alone."""
        try:
            self._make_together(jobs)
        except _NobodyWants:
            pass
        except Stopped:
            raise
        except Exception as error:
            left = [job for job in jobs if job.id not in self._finished]
            if len(jobs) > 1:
                for job in left:
                    self._make([job])
            else:
                self._fail(jobs[0], error)

    def _make_together(self, jobs: list[Job]) -> None:
        start = time.perf_counter()
        student = self.students.get(jobs[0].model, jobs[0].lora, jobs[0].size, len(jobs))
        steps = len(student.schedule) + 1  # decoding counts as one
        names = [job.id for job in jobs]

        def on_step(step: int, x_t: Tensor) -> None:
            self._look(0)
            if not self.store.advance(self.worker, names, 100 * (step + 1) // steps):
                raise _NobodyWants
            if self.previews is not None:
                self.previews.step(jobs, step, x_t)

        if self.previews is not None:
            self.previews.begin(student, jobs)
        rows = student.encode([job.prompt for job in jobs], quiet=True)
        latents = student.denoise(rows, [job.seed for job in jobs], jobs[0].size, on_step)
        denoised_s = time.perf_counter() - start
        decoded = student.decode_each(latents)
        for job, one in zip(jobs, latents, strict=True):
            begun = time.perf_counter()
            chunks = next(decoded)
            try:
                if not one.isfinite().all():
                    raise FloatingPointError("the network gave values that are not finite")
                whole = self._write_and_learn(job, one, chunks)
            except (Stopped, _NobodyWants):
                raise
            except Exception as error:
                self._fail(job, error)
                continue
            if whole:
                seconds = denoised_s / len(jobs) + time.perf_counter() - begun
                size = self.results.video(job.id).stat().st_size
                if not self.store.complete(self.worker, job.id, seconds, size):
                    self.results.remove(job.id)
            self.results.remove_preview(job.id)
            self._finished.add(job.id)

    def _write_and_learn(self, job: Job, latents: Any, chunks: Iterator[Frames]) -> bool:
        """Writes a video as ``_write`` does, and learns its colours."""
        if self.previews is None or not self.previews.learns(job):
            return self._write(job, chunks)
        means = self.previews.means(latents)
        whole = self._write(job, means.watching(chunks))
        if whole:
            self.previews.learn(job, latents, means)
        return whole

    def _write(self, job: Job, chunks: Iterator[Frames]) -> bool:
        """Writes a video, which appears whole; False if nobody wants it any more."""
        from infer.batch.writing import writing
        from lightx2v_sgmd.outputs import move, sync_folder

        file = self.results.video(job.id)
        if not self._wanted(job):
            return False

        def appear(temporary: Path) -> None:
            move(temporary, file)
            sync_folder(file.parent)

        try:
            with writing(file, job.fps, appear) as pending:
                for chunk in chunks:
                    self._look(0)
                    if not self._wanted(job):
                        raise _NobodyWants
                    pending.put(chunk)
            pending.wait()
        except _NobodyWants:
            return False
        return True

    def _wanted(self, job: Job) -> bool:
        return self.store.get(job.id) is not None

    def _fail(self, job: Job, error: Exception) -> None:
        """Notes a failure; what is not meant for the client goes to the server's log."""
        self._finished.add(job.id)
        self.results.remove(job.id)
        if isinstance(error, UserError):
            reason = short_line(str(error).replace(str(self.results.folder), "the server"), 500)
        else:
            reason = "internal error; the server's log says more"
        print(f"serve: {job.id} failed: {error}", file=sys.stderr, flush=True)
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        self.store.fail(self.worker, job.id, reason)


class _NobodyWants(Exception):
    """All videos of a batch were deleted."""
