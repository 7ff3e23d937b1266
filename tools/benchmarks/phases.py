"""The time of a training iteration, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from distill.observed import Event, Listener
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, TEACHER

PHASES = (
    "rollout",
    "teacher",
    "fake score",
    "student backward",
    "discriminator",
    "optimizer",
    "communication",
    "other",
)
Interval = tuple[float, float]


class Phases(Listener):
    """A stopwatch for nested phases: time counts for the innermost one.

    A trainer that it listens to has the phases of ``phase_of``.

    Args:
        device: A GPU is waited for at each change of phase.
        clock: In seconds.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._device, self._clock = device, clock
        self._inside: list[str] = []
        self._since = 0.0

    def _mark(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = self._clock()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def _enter(self, name: str) -> None:
        self._mark()
        self._inside.append(name)

    def _leave(self) -> None:
        self._mark()
        self._inside.pop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A block of that phase."""
        self._enter(name)
        try:
            yield
        finally:
            self._leave()

    def before(self, event: Event) -> None:
        """The phase of an event begins."""
        self._enter(phase_of(event))

    def after(self, event: Event) -> None:
        """The phase of an event ends."""
        self._leave()

    @contextmanager
    def watching_waits(self) -> Iterator[None]:
        """Inside, waiting for other processes is a phase. On a GPU none waits: see ``exposed``."""
        work: Any = torch.distributed.Work
        original = work.wait
        if self._device.type != "cuda":
            phases = self

            def wait(self: Any, *args: Any) -> Any:
                with phases.phase("communication"):
                    return original(self, *args)

            work.wait = wait
        try:
            yield
        finally:
            work.wait = original


def phase_of(event: Event) -> str:
    """The phase that an event of the strategy belongs to."""
    if event.action in ("step", "average"):
        return "optimizer"
    if event.action == "forward":
        return {STUDENT: "rollout", TEACHER: "teacher"}.get(event.role, "fake score")
    if event.role == STUDENT:
        return "student backward"
    return "fake score" if event.role == FAKE_SCORE else "discriminator"


def exposed(communication: Iterable[Interval], computation: Iterable[Interval]) -> float:
    """The time in which there was communication and no computation."""
    both = _merged([*communication, *(computation := list(computation))])
    return _length(both) - _length(_merged(computation))


def _length(intervals: Sequence[Interval]) -> float:
    return sum(stop - start for start, stop in intervals)


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, stop in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def kernel_intervals(profile: Any) -> tuple[list[Interval], list[Interval]]:
    """The intervals in seconds of NCCL's kernels and of all others, from a profile of GPUs."""
    of_nccl: list[Interval] = []
    of_others: list[Interval] = []
    for event in profile.profiler.kineto_results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA and event.duration_ns() > 0:
            start = event.start_ns() * 1e-9
            kind = of_nccl if "nccl" in event.name().lower() else of_others
            kind.append((start, start + event.duration_ns() * 1e-9))
    return of_nccl, of_others
