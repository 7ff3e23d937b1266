"""A strategy with listeners, so that the loop holds the mathematics alone.

Stopping on request, watching for hangs and timing need to know what a run is doing at the moment.
They listen here, outside of the loop:

    trainer.listen(StopOnRequest(ranks, asked), ReportProgress(trainer.where, watch.tick))

Every rank passes the same places in the same order, so a listener may use collectives in
``before`` and ``after``, as long as it does so on every rank. ``Event.nested`` tells the passes
that run inside the loss of another one, where raising would leave that one half done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.interpolants import Interpolant
from lightx2v_sgmd.parallel import (
    DISCRIMINATOR,
    FAKE_SCORE,
    STUDENT,
    FakeScoreQuery,
    Ranks,
    ScoreLoss,
    Strategy,
    StrategySettings,
)
from lightx2v_sgmd.parallel import PIXEL_DISCRIMINATOR as PIXELS

Action = Literal["forward", "gradient", "backward", "heads", "step", "average"]


@dataclass(frozen=True)
class Event:
    """One call of a strategy.

    Attributes:
        action: ``forward`` is a pass of a network, ``gradient`` one to its inputs only,
            ``backward`` one to its weights, ``heads`` a discriminator's logits, ``step`` an
            optimizer step, ``average`` the update of the EMA weights.
        role: The network that it is about.
        nested: True inside the loss of a ``gradient`` or ``backward`` event.
    """

    action: Action
    role: str
    nested: bool = False


class Listener:
    """Hears of each event before and after it; this one does nothing."""

    def before(self, event: Event) -> None:
        """Hears of a call before the strategy does."""

    def after(self, event: Event) -> None:
        """Hears of a call after the strategy has returned, and not if it has raised."""


class Stopped(Exception):
    """A process was asked to stop; every role is as the last update has left it."""


class StopOnRequest(Listener):
    """Leaves the iteration between two passes once any rank was asked to stop.

    All ranks ask one another after the same passes, so that they leave together. What a rank
    computes between two such places is in ``flops.stop_intervals``.

    Args:
        ranks: The processes of the run.
        asked: Returns True once this process was asked to stop.
    """

    def __init__(self, ranks: Ranks, asked: Callable[[], bool]) -> None:
        self._ranks, self._asked = ranks, asked

    def after(self, event: Event) -> None:
        """Asks all ranks.

        Raises:
            Stopped: one of them was asked to stop.
        """
        if event.nested or event.action not in ("forward", "gradient", "backward"):
            return
        if self._ranks.any(self._asked()):
            raise Stopped


class ReportProgress(Listener):
    """Tells the hang detector what comes next, again and again; silence means that something hangs.

    Args:
        where: Returns the place in the run, such as ``step 3, update 1 of 2``.
        report: Takes the text.
    """

    def __init__(self, where: Callable[[], str], report: Callable[[str], None]) -> None:
        self._where, self._report = where, report

    def before(self, event: Event) -> None:
        """Reports the place."""
        stepping = f", stepping the {event.role}" if event.action == "step" else ""
        self._report(f"{self._where()}{stepping}")


class Observed(Strategy):
    """A strategy with listeners; everything else is the strategy's own.

    Args:
        strategy: The strategy that does the work.
        listeners: The listeners, which hear of each event in this order.
    """

    def __init__(self, strategy: Strategy, listeners: Sequence[Listener]) -> None:
        self.inner, self.listeners = strategy, tuple(listeners)
        self.settings: StrategySettings = strategy.settings
        self.ranks: Ranks = strategy.ranks
        self.interpolant: Interpolant = strategy.interpolant
        self.trained: tuple[str, ...] = strategy.trained
        self.networks: Mapping[str, nn.Module] = strategy.networks
        self.shapes: Mapping[str, torch.Size] = strategy.shapes
        self._depth = 0

    @contextmanager
    def event(self, action: Action, role: str) -> Iterator[None]:
        """Tells the listeners of what happens inside."""
        event = Event(action, role, nested=self._depth > 0)
        for listener in self.listeners:
            listener.before(event)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        for listener in self.listeners:
            listener.after(event)

    def predict(self, role: str, x_t: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """See ``Strategy``."""
        with self.event("forward", role):
            return self.inner.predict(role, x_t, time, conditioning)

    def fake_score_at(
        self, x0: Tensor, x_t: Tensor, time: Tensor, conditioning: Conditioning
    ) -> FakeScoreQuery:
        """See ``Strategy``; the query's passes are events."""
        return _ObservedQuery(self, self.inner.fake_score_at(x0, x_t, time, conditioning))

    def logits(self, x_t: Tensor, time: Tensor, conditioning: Conditioning, update: bool) -> Tensor:
        """See ``Strategy``."""
        with self.event("heads", DISCRIMINATOR):
            return self.inner.logits(x_t, time, conditioning, update)

    def frame_logits(self, features: Sequence[Tensor], update: bool) -> Tensor:
        """See ``Strategy``."""
        with self.event("heads", PIXELS):
            return self.inner.frame_logits(features, update)

    def gradient(self, loss: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
        """See ``Strategy``."""
        with self.event("gradient", DISCRIMINATOR):
            return self.inner.gradient(loss, x0)

    def backward(self, role: str, loss: Tensor) -> None:
        """See ``Strategy``."""
        with self.event("backward", role):
            self.inner.backward(role, loss)

    def step(self, role: str, lr: float) -> float:
        """See ``Strategy``."""
        with self.event("step", role):
            return self.inner.step(role, lr)

    def update_average(self, decay: float, role: str = STUDENT) -> None:
        """See ``Strategy``."""
        with self.event("average", role):
            self.inner.update_average(decay, role)

    def gradient_norm(self, role: str) -> float:
        """See ``Strategy``."""
        return self.inner.gradient_norm(role)

    def averaged_student(self) -> AbstractContextManager[None]:
        """See ``Strategy``."""
        return self.inner.averaged_student()

    def whole_tensors(
        self, role: str, averaged: bool = False, to: Mapping[str, int] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """See ``Strategy``."""
        return self.inner.whole_tensors(role, averaged, to)

    def save_slices(self, role: str) -> dict[str, Tensor]:
        """See ``Strategy``."""
        return self.inner.save_slices(role)

    def load(self, checkpoint: Path, updates: Mapping[str, int]) -> None:
        """See ``Strategy``."""
        self.inner.load(checkpoint, updates)

    def close(self) -> None:
        """See ``Strategy``."""
        self.inner.close()


class _ObservedQuery(FakeScoreQuery):
    """The fake score at one x_t, with listeners."""

    def __init__(self, observed: Observed, query: FakeScoreQuery) -> None:
        self._observed, self._query = observed, query

    def generator_gradient(
        self, loss: ScoreLoss, through: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        with self._observed.event("gradient", FAKE_SCORE):
            return self._query.generator_gradient(loss, through)

    def backward(self, loss: ScoreLoss) -> None:
        with self._observed.event("backward", FAKE_SCORE):
            self._query.backward(loss)
