"""The fake score at x_t under ``zero3``: it runs once for each of the two updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.methods.base import FAKE_SCORE, STUDENT, role_of
from lightx2v_sgmd.parallel.base import ScoreLoss

if TYPE_CHECKING:
    from lightx2v_sgmd.parallel.zero3.strategy import Zero3


class TwoForwards:
    """The fake score at x_t: the frozen module serves the generator, the engine its own update."""

    def __init__(
        self, zero3: Zero3, x0: Tensor, x_t: Tensor, time: Tensor, conditioning: Conditioning
    ) -> None:
        self._zero3 = zero3
        self._x0, self._x_t = x0.detach(), x_t.detach()
        self._at = time, conditioning

    def generator_gradient(
        self, loss: ScoreLoss, through: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Computes the gradient at copies of x0 and x_t; see ``FakeScoreQuery``."""
        x0, x_t = self._x0.clone().requires_grad_(), self._x_t.clone().requires_grad_()
        others = [role for role in self._zero3.trained if role_of(role) != STUDENT]
        with self._zero3.frozen(*others):
            with torch.set_grad_enabled(through):
                predicted = self._zero3.predict_inside(FAKE_SCORE, x_t, *self._at)
            to_x0, to_x_t = torch.autograd.grad(
                loss(x0, x_t, predicted), [x0, x_t], allow_unused=True
            )
        return to_x0, to_x_t

    def backward(self, loss: ScoreLoss) -> None:
        """Runs the fake score's engine, and its backward pass."""
        predicted = self._zero3.predict(FAKE_SCORE, self._x_t, *self._at)
        self._zero3.backward(
            self._zero3.at(FAKE_SCORE, self._at[0]), loss(self._x0, self._x_t, predicted)
        )
