"""What a distillation method is: the roles it trains and pure losses over tensors.

A method never sees ranks, engines or optimizers. A new one is one module with one class, named
in ``methods.REGISTRY`` or announced by an entry point of the group ``lightx2v_sgmd.methods``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

# B batch, C channels, T latent frames, H, W

Losses = dict[str, Tensor]
"""Loss terms ``[B]`` by name, already weighted: what is minimised is their sum."""


@dataclass(frozen=True)
class Sample:
    """The tensors of one micro-batch, all ``[B, C, T, H, W]`` float32 but ``sigma`` ``[B]``.

    Attributes:
        x0: The student's rollout.
        noise: Fresh noise of the score step.
        sigma: Score times.
        x_t: ``add_noise(x0, noise, sigma)``.
        velocity_fake: The fake score's velocity at ``x_t``.
        x_fake: Its data prediction.
        x_real: The guided teacher's data prediction at ``sg[x_t]``; None in a fake-score update
            that asks for none.
    """

    x0: Tensor
    noise: Tensor
    sigma: Tensor
    x_t: Tensor
    velocity_fake: Tensor
    x_fake: Tensor
    x_real: Tensor | None = None


class Method(Protocol):
    """A distillation method.

    Attributes:
        name: What a job calls it.
        roles: The networks that it trains.
        fake_score_updates: Fake-score updates for each generator update.
        fresh_rollouts: Whether each fake-score update draws a rollout of its own; otherwise it uses
            the x_t of the generator update.
        through_fake_score: Whether the generator's gradient flows through the fake score.
    """

    name: str
    roles: tuple[str, ...]
    fake_score_updates: int
    fresh_rollouts: bool
    through_fake_score: bool

    def generator_losses(self, sample: Sample) -> Losses:
        """The student's loss terms; they may depend on it through ``x0`` and ``x_t``."""
        ...

    def fake_score_losses(self, sample: Sample) -> Losses:
        """The fake score's loss terms; ``x0`` and ``x_t`` carry no gradient."""
        ...
