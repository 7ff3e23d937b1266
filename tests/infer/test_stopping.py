"""Stopping a generation from outside: between steps, and between chunks of frames."""

from typing import Any

import numpy as np
import pytest
import torch

from infer.result import Cancelled
from infer.stopping import reporter, stoppable


class CountingBar:
    """A progress bar that adds up its steps."""

    def __init__(self) -> None:
        self.steps = 0

    def advance(self, steps: int = 1) -> None:
        """Adds the steps."""
        self.steps += steps


def test_chunks_pass_until_cancel_says_stop() -> None:
    chunks = [np.full((1, 2, 2, 3), value, np.uint8) for value in range(4)]
    assert list(stoppable(iter(chunks), None)) == chunks
    answers = iter([False, False, True])
    received = []
    with pytest.raises(Cancelled):
        for chunk in stoppable(iter(chunks), lambda: next(answers)):
            received.append(chunk)
    assert received == chunks[:2]


def test_a_step_moves_the_bar_by_its_videos_and_tells_the_caller_before_it_stops() -> None:
    bar: Any = CountingBar()
    calls: list[tuple[int, torch.Tensor]] = []
    latents = torch.zeros(3, 16, 1, 2, 2)
    report = reporter(bar, lambda step, x_t: calls.append((step, x_t)), lambda: len(calls) == 2)
    report(0, latents)
    with pytest.raises(Cancelled):
        report(1, latents)
    assert bar.steps == 6
    assert [step for step, _ in calls] == [0, 1] and all(x_t is latents for _, x_t in calls)
