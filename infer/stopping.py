"""Callbacks of a generation: progress for the caller, and a way to stop it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from infer.result import Cancelled
from lightx2v_sgmd.files.video import Frames
from lightx2v_sgmd.system.console import Bar

OnStep = Callable[[int, Tensor], None]
"""A function that is called after each step with its index and the latents ``[B, C, T, h, w]``."""
Cancel = Callable[[], bool]
"""A function that is asked between steps and chunks of frames; True stops with ``Cancelled``."""


def stoppable(chunks: Iterator[Frames], cancel: Cancel | None) -> Iterator[Frames]:
    """The same chunks, until ``cancel`` says stop."""
    for chunk in chunks:
        if cancel is not None and cancel():
            raise Cancelled
        yield chunk


def reporter(bar: Bar, on_step: OnStep | None, cancel: Cancel | None) -> OnStep:
    """The rollout's callback after each step: it moves the bar, tells the caller and asks it."""

    def report(step: int, x_t: Tensor) -> None:
        bar.advance(x_t.shape[0])
        if on_step is not None:
            on_step(step, x_t)
        if cancel is not None and cancel():
            raise Cancelled

    return report
