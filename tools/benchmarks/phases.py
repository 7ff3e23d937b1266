"""Where a training iteration's time goes, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from distill.trainer import Trainer
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT

Result = TypeVar("Result")
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


class Phases:
    """A stopwatch for nested phases: time counts for the innermost one.

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

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A block of that phase."""
        self._mark()
        self._inside.append(name)
        try:
            yield
        finally:
            self._mark()
            self._inside.pop()

    def timed(self, name: str, work: Callable[..., Result]) -> Callable[..., Result]:
        """The same function, as a phase."""

        def run(*args: Any, **kwargs: Any) -> Result:
            with self.phase(name):
                return work(*args, **kwargs)

        return run

    def watch(self, trainer: Trainer) -> None:
        """Times the parts of a trainer."""
        parts: Any = trainer
        parts._rollout = self.timed("rollout", parts._rollout)
        parts.teacher_x0 = self.timed("teacher", parts.teacher_x0)
        strategy: Any = trainer.strategy
        strategy.step = self.timed("optimizer", strategy.step)
        strategy.update_average = self.timed("optimizer", strategy.update_average)
        strategy.logits = self.timed("discriminator", strategy.logits)
        backward, fake_score_at = strategy.backward, strategy.fake_score_at
        names = {STUDENT: "student backward", FAKE_SCORE: "fake score"}

        def timed_backward(role: str, loss: torch.Tensor) -> None:
            with self.phase(names.get(role, "discriminator")):
                backward(role, loss)

        def timed_query(*args: Any) -> Any:
            query = fake_score_at(*args)
            query.generator_gradient = self.timed("fake score", query.generator_gradient)
            query.backward = self.timed("fake score", query.backward)
            return query

        strategy.backward, strategy.fake_score_at = timed_backward, timed_query

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


def exposed(communication: Iterable[Interval], computation: Iterable[Interval]) -> float:
    """For how long there was communication and no computation."""
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
    """Of a profile of GPUs: when NCCL's kernels ran, and when others did, in seconds."""
    of_nccl: list[Interval] = []
    of_others: list[Interval] = []
    for event in profile.profiler.kineto_results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA and event.duration_ns() > 0:
            start = event.start_ns() * 1e-9
            kind = of_nccl if "nccl" in event.name().lower() else of_others
            kind.append((start, start + event.duration_ns() * 1e-9))
    return of_nccl, of_others
