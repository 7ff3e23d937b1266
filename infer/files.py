"""Prompts in, mp4 files out: what can be refused is refused before weights are loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer.checks import Checked, check_student
from infer.engine import Student
from infer.options import Options, make_plan
from infer.profiling import profiled
from infer.requests import Request, batches, make_requests, settle
from infer.result import Cancelled
from infer.stopping import Cancel, OnStep, stoppable
from infer.together import check_ranks, processes
from infer.video import check_writable
from infer.writing import Pending, is_whole, writing
from lightx2v_sgmd.console import Bar, note, progress
from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.video import WAN_FPS, Frames


@dataclass
class Outcome:
    """What a run made.

    Attributes:
        files: The videos that are whole, in the order of the prompts.
        skipped: How many of them were there before.
        failed: Name and reason of each one that could not be made.
        timings: Wall time in seconds by stage: ``load``, ``text``, ``denoise``, ``decode``, and
            ``write``, which counts only what decoding did not overlap.
        way: The options that the memory plan settled on.
    """

    files: list[Path] = field(default_factory=list)
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    way: str = ""


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
    **options: Any,
) -> list[Path]:
    """As ``generate_files``, for those who only want the files.

    Raises:
        UserError: see ``generate_files``.
        SomeFailed: some videos could not be made.
    """
    outcome = generate_files(weights, prompts, out, **options)
    if outcome.failed:
        raise SomeFailed(outcome)
    return outcome.files


def generate_files(
    weights: str | Path,
    prompts: str | Sequence[str] | Path,
    out: str | Path,
    *,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    batch_size: int | None = None,
    assume_schedule: str | None = None,
    base: str | Path | None = None,
    profile: Path | None = None,
    cancel: Cancel | None = None,
    quiet: bool = False,
    **options: Any,
) -> Outcome:
    """Makes videos and writes them as mp4.

    In a folder each video gets a sidecar (``.json``) that says what it is, and a video that is
    there with a fitting one is not made again. One that fails does not stop the others.

    Args:
        weights: See ``load_student``, as for ``assume_schedule``, ``base`` and ``options``.
        prompts: One prompt, several, or a ``Path`` to a file of them (see ``make_requests``).
        out: A file for a single prompt (``.mp4`` is added if it has no suffix), else a folder that
            gets ``0000_<words of the prompt>.mp4`` and so on.
        seed: Of the first video; each next one takes the next number.
        height: In pixels; default as trained.
        width: In pixels.
        num_frames: ``4k + 1``.
        fps: Default the rate of the videos that the student was trained on.
        batch_size: Videos denoised together, of one size; does not change them beyond rounding.
        profile: Where to write a trace of the run (Chrome's format; ``.gz`` packs it).
        cancel: Asked between steps and between chunks of frames whether to stop.
        quiet: No progress bar.
        **options: Fields of ``Options``.

    Raises:
        UserError: what ``load_student`` and ``Student.generate`` refuse, prompts that cannot be
            read, or an output that cannot be written (all found before anything is loaded).
        Cancelled: ``cancel`` said so; what was finished stays.
    """
    chosen = Options(**options)
    requests = make_requests(prompts, seed)
    out, alone = Path(out), isinstance(prompts, str)
    files = _outputs(requests, out, alone)
    if profile is not None:
        check_writable(profile)
    checked = check_student(weights, assume_schedule, chosen.loras, base)
    requests = settle(requests, checked, height, width, num_frames)
    largest = max((r.size for r in requests), key=lambda size: size[0] * size[1] * size[2])
    with processes(chosen.device) as ranks:
        check_ranks(ranks, checked.model.num_heads)
        plan = make_plan(checked.model, chosen, largest, batch_size or 1, ranks)
        facts = _Facts(checked, chosen, plan.dtype)
        sidecars = None if alone and not out.is_dir() else facts
        run = _Run(ranks, facts.fps(fps), sidecars, cancel, quiet or not ranks.first)
        run.look(requests, files)
        run.outcome.way = plan.way.flags()
        if run.waiting:
            if plan.fitted:
                note(f"to fit into the memory: {plan.way.flags()}", run.quiet)
            with profiled(profile if ranks.first else None):
                run.go(lambda: Student(checked, plan, ranks), batch_size)
    run.outcome.files = [file for file in files if file in run.done]
    return run.outcome


class _Facts:
    """What a sidecar says of a video."""

    def __init__(self, checked: Checked, options: Options, dtype: torch.dtype) -> None:
        self._trained_fps = checked.video.fps if checked.video else WAN_FPS
        self.common = {
            "weights": _identity(checked, options),
            "timesteps": checked.schedule.to_dict()["timesteps"],
            "dtype": str(dtype).removeprefix("torch."),
            "quantize": options.quantize,
        }

    def fps(self, asked: float | None) -> float:
        return asked or self._trained_fps

    def of(self, request: Request, fps: float) -> dict[str, Any]:
        height, width, num_frames = request.size
        return {
            "prompt": request.prompt,
            "seed": request.seed,
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "fps": fps,
            **self.common,
        }


def _identity(checked: Checked, options: Options) -> str:
    """Names the weights: by the hashes in their manifest, else by their files' names and sizes."""
    if checked.manifest is not None and checked.manifest.sha256:
        said: list[Any] = sorted(checked.manifest.sha256.items())
    else:
        files = checked.model.source.files("transformer")
        said = [(file.name, file.stat().st_size) for file in files]
    said += [(x.path.name, x.path.stat().st_size, x.strength) for x in options.loras]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


class _Run:
    """The videos of one call: which are waiting, which are done, which failed."""

    def __init__(
        self,
        ranks: Ranks,
        fps: float,
        sidecars: _Facts | None,
        cancel: Cancel | None,
        quiet: bool,
    ) -> None:
        self.ranks, self.fps, self.sidecars = ranks, fps, sidecars
        self.cancel, self.quiet = cancel, quiet
        self.outcome = Outcome()
        self.waiting: list[Request] = []
        self.done: set[Path] = set()
        self._files: dict[str, Path] = {}
        self._writing: list[tuple[Request, Pending]] = []

    def look(self, requests: Sequence[Request], files: Sequence[Path]) -> None:
        """Tells what is there from what is to be made; the first process looks, for all."""
        self._files = {request.name: file for request, file in zip(requests, files, strict=True)}

        def whole() -> set[str]:
            if self.sidecars is None:
                return set()
            facts = {r.name: self.sidecars.of(r, self.fps) for r in requests}
            return {name for name, file in self._files.items() if is_whole(file, facts[name])}

        there = self.ranks.once(whole)
        self.waiting = [request for request in requests if request.name not in there]
        self.done = {self._files[name] for name in there}
        self.outcome.skipped = len(there)
        if there:
            note(f"{len(there)} of {len(requests)} videos are there already", self.quiet)

    def go(self, load: Callable[[], Student], batch_size: int | None) -> None:
        start = time.perf_counter()
        student = load()
        timings = self.outcome.timings
        timings["load"] = time.perf_counter() - start
        with student.timed(timings, "text"):
            rows = student.encode([request.prompt for request in self.waiting], self.quiet)
        texts = dict(zip((request.name for request in self.waiting), rows, strict=True))
        limit = batch_size or min(student.batch_for(request.size) for request in self.waiting)
        units = len(student.schedule) + 1
        total = units * (len(self.waiting) + self.outcome.skipped)
        with progress(total, "generating", self.quiet, done=units * self.outcome.skipped) as bar:
            try:
                for batch in batches(self.waiting, limit):
                    self._make(student, batch, texts, bar)
            finally:
                with student.timed(timings, "write"):
                    self._collect(keep=0)

    def _make(
        self, student: Student, batch: list[Request], texts: dict[str, Tensor], bar: Bar
    ) -> None:
        """One batch; if it fails, each of it alone."""
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
                    self._make(student, [request], texts, bar)
            else:
                self._failed(batch[0], error)
            return
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
        facts = None if self.sidecars is None else self.sidecars.of(request, self.fps)
        with writing(self._files[request.name], self.fps, facts) as pending:
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


def _denoise(
    student: Student, batch: Sequence[Request], texts: dict[str, Tensor], on_step: OnStep
) -> Tensor:
    rows = [texts[request.name] for request in batch]
    return student.denoise(rows, [request.seed for request in batch], batch[0].size, on_step)


def _outputs(requests: Sequence[Request], out: Path, alone: bool) -> list[Path]:
    """The files to write, each of which can be written."""
    if alone and not out.is_dir():
        if out.suffix.lower() not in ("", ".mp4"):
            raise UserError(f"{out}: videos are written as .mp4; end --out with .mp4")
        file = out.with_suffix(".mp4")
        check_writable(file)
        return [file]
    if out.suffix.lower() == ".mp4":
        raise UserError(f"{out}: is one file for {len(requests)} prompts; give a folder as --out")
    check_writable(out, folder=True)
    files = [out / f"{request.name}.mp4" for request in requests]
    for file in files:
        if file.is_dir():
            raise UserError(f"{file}: is a folder, not a file; move it or choose another output")
    return files
