"""Prompts in, mp4 files out: what can be refused is refused before weights are loaded."""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from infer.batch.outputs import check_own, check_profile, output_files, output_lock, refuse_sources
from infer.batch.profiling import profiled
from infer.batch.provenance import Provenance
from infer.batch.requests import Request, batches, make_requests, settle
from infer.batch.sheet import write_sheet
from infer.batch.sidecars import is_there, publish, sidecar
from infer.batch.writing import Pending, writing
from infer.checks import check_student, output_suffix
from infer.engine import Student
from infer.engine_plan import make_plan
from infer.multi_gpu import check_ranks, processes
from infer.options import GenerateOptions
from infer.parts import NETWORK
from infer.result import Cancelled
from infer.stopping import Cancel, OnStep, stoppable
from infer.text import TEXT_ENCODER
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.files.video import IMAGE_SUFFIX, Frames
from lightx2v_sgmd.outputs import OutputLock, resolved
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.console import Bar, note, progress
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import required
from lightx2v_sgmd.system.torch_faults import slow_conv3d


@dataclass
class Outcome:
    """The result of a run.

    Attributes:
        files: The videos that are whole, in the order of the prompts.
        skipped: The number of them that were there before.
        failed: Name and reason of each one that could not be made.
        timings: Wall time in seconds by stage: ``load``, ``text``, ``denoise``, ``decode``, and
            ``write``, which counts only what decoding did not overlap.
        memory_mode: The options that the memory plan settled on.
    """

    files: list[Path] = field(default_factory=list)
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    memory_mode: str = ""


class SomeFailed(RuntimeError):
    """Some videos could not be made; the others are there."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        name, reason = outcome.failed[0]
        super().__init__(f"{len(outcome.failed)} videos failed; the first, {name}: {reason}")


def generate(
    weights: str | Path,
    prompts: str | Sequence[str] | Path,
    out: str | Path,
    options: GenerateOptions | None = None,
    *,
    quiet: bool = False,
) -> list[Path]:
    """Makes videos and writes them as mp4; returns the files, as ``generate_files`` does.

    Raises:
        UserError: see ``generate_files``.
        SomeFailed: some videos could not be made.
    """
    outcome = generate_files(weights, prompts, out, options, quiet=quiet)
    if outcome.failed:
        raise SomeFailed(outcome)
    return outcome.files


def generate_files(
    weights: str | Path,
    prompts: str | Sequence[str] | Path,
    out: str | Path,
    options: GenerateOptions | None = None,
    *,
    cancel: Cancel | None = None,
    quiet: bool = False,
) -> Outcome:
    """Makes videos and writes them as mp4, or images and writes them as PNG.

    Each video gets a sidecar (``.json``) that says what it was made from, and a video whose sidecar
    fits is not made again. Only videos and sidecars of ours are replaced. A video that fails does
    not stop the others.

    Args:
        weights: As for ``load_student``.
        prompts: One prompt, several, or a ``Path`` to a file of them (see ``make_requests``).
        out: A file for a single prompt (``.mp4`` is added if it has no suffix), else a folder that
            gets ``0000_<words of the prompt>.mp4`` and so on.
        options: Sizes, seeds, precision, memory and so on; see ``infer.GenerateOptions``.
        cancel: Asked between steps and between chunks of frames whether to stop.
        quiet: Show no progress bar.

    Raises:
        UserError: what ``load_student`` and ``Student.generate`` refuse, prompts that cannot be
            read, or an output that cannot be written (all found before anything is loaded).
        Cancelled: ``cancel`` said so; what was finished stays.
    """
    required("imageio_ffmpeg")
    options = options or GenerateOptions()
    if options.fps is not None and not 0.1 <= options.fps <= 1000:
        raise UserError(f"fps: {options.fps:g} is not from 0.1 to 1000 frames per second")
    requests = make_requests(prompts, options.seed)
    resolved(out)
    suffix = output_suffix(weights, options.base)
    files = output_files(requests, Path(out), alone=isinstance(prompts, str), suffix=suffix)
    if options.profile is not None:
        check_profile(options.profile, files)
    refuse_sources(files, weights, options, prompts, Path(out))
    checked = check_student(
        weights,
        options.assume_schedule,
        options.loras,
        options.base,
        options.skip_image_layers,
        quiet=quiet,
    )
    size = options.height, options.width, options.num_frames
    requests = settle(requests, checked, *size, options.image)
    largest = max((r.size for r in requests), key=lambda size: size[0] * size[1] * size[2])
    with processes(options.device) as ranks:
        check_ranks(ranks, checked.model.num_heads)
        plan = make_plan(
            checked.model, options, largest, options.batch_size or 1, ranks, checked.teacher_dtype
        )
        provenance = Provenance(checked, options, plan.dtype, plan.text_dtype)
        silent = quiet or not ranks.first
        with output_lock(files, Path(out), ranks, quiet) as lock:
            run = _Run(ranks, provenance, options.fps, lock, cancel, silent)
            run.look(requests, files)
            run.outcome.memory_mode = plan.memory_mode.flags()
            if run.waiting:
                if plan.fitted:
                    note(f"to fit into the memory: {plan.memory_mode.flags()}", run.quiet)
                if (fault := slow_conv3d(plan.device)) is not None:
                    note(fault, run.quiet)
                with profiled(options.profile if ranks.first else None):
                    run.go(lambda: Student(checked, plan, ranks, silent), options.batch_size)
                if suffix == IMAGE_SUFFIX and len(run.done) > 1 and ranks.first:
                    write_sheet([file for file in files if file in run.done], Path(out), quiet)
    run.outcome.files = [file for file in files if file in run.done]
    return run.outcome


Texts = Callable[[Request], Embedding]
"""Gives what the network is told of a video; it may be read from a file each time."""


class _Run:
    """The videos of one call: which are waiting, which are done, which failed."""

    def __init__(
        self,
        ranks: Ranks,
        provenance: Provenance,
        fps: float | None,
        lock: OutputLock | None,
        cancel: Cancel | None,
        quiet: bool,
    ) -> None:
        self.ranks, self.provenance, self.fps = ranks, provenance, provenance.fps(fps)
        self.lock, self.cancel, self.quiet = lock, cancel, quiet
        self.outcome = Outcome()
        self.waiting: list[Request] = []
        self.done: set[Path] = set()
        self._files: dict[str, Path] = {}
        self._writing: list[tuple[Request, Pending]] = []

    def look(self, requests: Sequence[Request], files: Sequence[Path]) -> None:
        """Tells what is there from what is to be made; the first process looks, for all."""
        self._files = {request.name: file for request, file in zip(requests, files, strict=True)}

        def whole() -> set[str]:
            check_own(files)
            return {
                request.name
                for request, file in zip(requests, files, strict=True)
                if sidecar(file).exists() and is_there(file, self.provenance.of(request, self.fps))
            }

        there = self.ranks.once(whole)
        self.waiting = [request for request in requests if request.name not in there]
        self.done = {self._files[name] for name in there}
        self.outcome.skipped = len(there)
        if there:
            note(f"{len(there)} of {len(requests)} videos are there already", self.quiet)

    def go(self, load: Callable[[], Student], batch_size: int | None) -> None:
        start = time.perf_counter()
        if self.ranks.first:
            self.provenance.start()
        student = load()
        timings = self.outcome.timings
        timings["load"] = time.perf_counter() - start
        with student.timed(timings, "text"):
            texts = student.encode([request.prompt for request in self.waiting], self.quiet)
            images = [(request.image, request.size) for request in self.waiting]
            rows = student.with_images(texts, images, self.quiet)
        student.release(TEXT_ENCODER)
        order = {request.name: index for index, request in enumerate(self.waiting)}
        limit = batch_size or min(student.batch_for(request.size) for request in self.waiting)
        units = len(student.schedule) + 1
        total = units * (len(self.waiting) + self.outcome.skipped)
        with progress(total, "generating", self.quiet, done=units * self.outcome.skipped) as bar:
            try:
                groups = batches(self.waiting, limit)
                for batch in groups:
                    self._make(
                        student, batch, lambda r: rows[order[r.name]], bar, last=batch is groups[-1]
                    )
            finally:
                with student.timed(timings, "write"):
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
        timings = self.outcome.timings

        def on_step(step: int, x_t: Tensor) -> None:
            bar.advance(len(batch))
            if self.cancel is not None and self.cancel():
                raise Cancelled

        try:
            with student.timed(timings, "denoise"):
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
                self._failed(batch[0], error)
            return
        if last:
            student.release(NETWORK)
        decoded = student.decode_each(latents)
        for request, one in zip(batch, latents, strict=True):
            try:
                with student.timed(timings, "decode"):
                    chunks = next(decoded)
                    if not one.isfinite().all():
                        raise FloatingPointError("the network gave values that are not finite")
                    self._write(request, stoppable(chunks, self.cancel))
            except Cancelled:
                raise
            except Exception as error:
                self._failed(request, error)
            bar.advance(1, request.name)

    def _write(self, request: Request, chunks: Iterator[Frames]) -> None:
        """Gives a video's frames to the thread that writes it."""
        if not self.ranks.first:
            deque(chunks, maxlen=0)  # this process's tiles
            return
        file = self._files[request.name]

        def appear(temporary: Path) -> None:
            assert self.lock is not None, "the first process has the lock"
            self.lock.check()
            provenance = self.provenance.of(request, self.fps)
            # In a folder somebody may make this very file as a single one: it has its own lock.
            with self.lock.also(file):
                publish(temporary, file, provenance)

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
                self.done.add(pending.path)
            except Exception as error:
                self._failed(request, error)

    def _failed(self, request: Request, error: Exception) -> None:
        """Notes a failure; a full disk ends the run, since the rest would fail as well.

        Raises:
            UserError: the disk is full.
        """
        if getattr(error.__cause__, "errno", None) == errno.ENOSPC:
            raise error
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        self.outcome.failed.append((request.name, reason))
        note(f"{request.name} failed: {reason}", self.quiet)


def _denoise(student: Student, batch: Sequence[Request], texts: Texts, on_step: OnStep) -> Tensor:
    rows = [texts(request) for request in batch]
    return student.denoise(rows, [request.seed for request in batch], batch[0].size, on_step)
