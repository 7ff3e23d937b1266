"""Interpolants between data and noise, ``x_t = alpha_t x0 + sigma_t noise``, and predictions.

A time is a float32 tensor ``[B]``, one for each sample: 0 is data and 1 is noise, in every
interpolant. An interpolant gives alpha and sigma at a time, and the timestep that a network takes
for it. It also knows the kind of prediction that the network makes:

- ``velocity``: ``noise - x0``, as flow matching predicts;
- ``v``: ``alpha noise - sigma x0`` (arXiv 2202.00512, App. D);
- ``epsilon``: the noise (arXiv 2006.11239).

At a fixed x_t each kind is linear in the data prediction, so guidance may combine predictions of
any kind. The formulas of arXiv 2605.30116 are stated for a general alpha and sigma; ``flow`` has
the special forms for flow matching, which ``FlowMatching`` uses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from lightx2v_sgmd import flow
from lightx2v_sgmd.flow import per_sample
from lightx2v_sgmd.system.errors import UserError

# B batch; a latent has any further dimensions

Prediction = Literal["velocity", "v", "epsilon"]
"""The quantity that a network predicts at x_t."""

STEPS: Final = 1000
"""Number of timesteps of a network's training; a timestep is about 1000 times a time."""


class Interpolant(ABC):
    """A path from data to noise, and the kind of prediction that a network makes on it.

    Attributes:
        prediction: The kind of prediction.
    """

    prediction: Prediction

    @abstractmethod
    def alpha(self, time: Tensor) -> Tensor:
        """The factor of the data, ``[B]``: 1 at time 0."""

    @abstractmethod
    def sigma(self, time: Tensor) -> Tensor:
        """The factor of the noise, ``[B]``: 0 at time 0."""

    @abstractmethod
    def timestep(self, time: Tensor) -> Tensor:
        """The timestep ``[B]`` that a network takes for a time."""

    def nearest(self, time: Tensor) -> Tensor:
        """The nearest time ``[B]`` at which networks are trained: any time, or one of a grid."""
        return time

    def add_noise(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Computes the forward process, ``alpha x0 + sigma noise`` (arXiv 2605.30116, Eq. 5)."""
        alpha, sigma = self._factors(x0, time)
        return alpha * x0 + sigma * noise

    def x0(self, x_t: Tensor, predicted: Tensor, time: Tensor) -> Tensor:
        """Computes the data prediction that a prediction of the network's kind means."""
        alpha, sigma = self._factors(x_t, time)
        if self.prediction == "velocity":
            return (x_t - sigma * predicted) / (alpha + sigma)
        if self.prediction == "v":
            return (alpha * x_t - sigma * predicted) / (alpha**2 + sigma**2)
        return (x_t - sigma * predicted) / alpha

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Computes what a network should predict at ``add_noise(x0, noise, time)``."""
        alpha, sigma = self._factors(x0, time)
        if self.prediction == "velocity":
            return noise - x0
        return alpha * noise - sigma * x0 if self.prediction == "v" else noise

    def noise(self, x_t: Tensor, x0: Tensor, time: Tensor) -> Tensor:
        """Computes the noise that a data prediction implies, ``(x_t - alpha x0) / sigma``.

        The time is above 0.
        """
        alpha, sigma = self._factors(x_t, time)
        return (x_t - alpha * x0) / sigma

    def score(self, x_t: Tensor, x0: Tensor, time: Tensor) -> Tensor:
        """Computes the score of a data prediction, ``(alpha x0 - x_t) / sigma^2``.

        It is Eq. 2 and 3 of arXiv 2605.30116; the time is above 0.
        """
        alpha, sigma = self._factors(x_t, time)
        return (alpha * x0 - x_t) / sigma**2

    def step(self, x_t: Tensor, x0: Tensor, time: Tensor, next_time: Tensor) -> Tensor:
        """Moves along the probability flow, with the noise that a data prediction implies.

        It is a step of DDIM, ``alpha' x0 + sigma' noise`` (arXiv 2010.02502, Eq. 12 with eta 0);
        for flow matching it is Euler's. ``time`` is above 0, ``next_time`` may be 0.
        """
        alpha, sigma = self._factors(x_t, next_time)
        return alpha * x0 + sigma * self.noise(x_t, x0, time)

    def fisher_weight(self, time: Tensor) -> Tensor:
        """Computes c(t) = alpha^2 / sigma^4 (arXiv 2605.30116, Eq. 10), ``[B]``.

        It turns the squared difference of data predictions into that of their scores.
        """
        return self.alpha(time) ** 2 / self.sigma(time) ** 4

    def _factors(self, like: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return per_sample(self.alpha(time), like), per_sample(self.sigma(time), like)


class FlowMatching(Interpolant):
    """Rectified flow: ``alpha = 1 - t`` and ``sigma = t``, with the formulas of ``flow``.

    Args:
        prediction: The kind of prediction; flow-matching networks predict the velocity.
    """

    def __init__(self, prediction: Prediction = "velocity") -> None:
        self.prediction = prediction

    def alpha(self, time: Tensor) -> Tensor:
        """``1 - t``."""
        return 1 - time

    def sigma(self, time: Tensor) -> Tensor:
        """The time itself."""
        return time

    def timestep(self, time: Tensor) -> Tensor:
        """``1000 t``."""
        return STEPS * time

    def fisher_weight(self, time: Tensor) -> Tensor:
        """``(1 - t)^2 / t^4``."""
        return flow.fisher_weight(time)

    def x0(self, x_t: Tensor, predicted: Tensor, time: Tensor) -> Tensor:
        """See ``Interpolant``; of a velocity it is ``x_t - sigma v``."""
        if self.prediction == "velocity":
            return flow.x0_from_velocity(x_t, predicted, time)
        return super().x0(x_t, predicted, time)

    def step(self, x_t: Tensor, x0: Tensor, time: Tensor, next_time: Tensor) -> Tensor:
        """See ``Interpolant``; it is Euler's step."""
        return flow.euler_to(x_t, x0, time, next_time)


class VariancePreserving(Interpolant):
    """A discrete diffusion, ``alpha^2 + sigma^2 = 1``, on a grid of times.

    Entry ``n`` of the noise schedule belongs to the timestep ``n`` and to the time
    ``(n + 1) / 1000``; time 0 is before the first entry and has no noise. Between the times of the
    grid, alpha is interpolated linearly.

    Args:
        alphas: Alpha at each timestep, falling: the square root of the cumulative product of
            ``1 - beta`` that schedulers call ``alphas_cumprod``.
        prediction: The kind of prediction.

    Raises:
        UserError: the values do not fall from 1 to 0, or an ``epsilon`` prediction is asked for
            although the last alpha is 0, where the noise says nothing about the data.
    """

    def __init__(self, alphas: Sequence[float] | Tensor, prediction: Prediction) -> None:
        values = torch.as_tensor(alphas, dtype=torch.float64, device="cpu")
        table = torch.cat([torch.ones(1, dtype=torch.float64), values])
        falling = bool((table[1:] < table[:-1]).all())
        if len(values) != STEPS or not falling or not 0 <= table[-1].item():
            raise UserError(
                f"a noise schedule needs {STEPS} values of alpha that fall from below 1 to 0 or "
                "more; copy the model's scheduler again"
            )
        if prediction == "epsilon" and not table[-1].item():
            raise UserError(
                "a network that predicts noise (epsilon) cannot start where alpha is 0; use a "
                "scheduler without rescale_betas_zero_snr"
            )
        self.prediction = prediction
        self._tables = {torch.device("cpu"): table}

    def alpha(self, time: Tensor) -> Tensor:
        """Alpha of the grid, interpolated linearly between its times."""
        return self._exact_alpha(time).to(time.dtype)

    def sigma(self, time: Tensor) -> Tensor:
        """``sqrt(1 - alpha^2)``."""
        alpha = self._exact_alpha(time)
        return ((1 - alpha) * (1 + alpha)).sqrt().to(time.dtype)

    def timestep(self, time: Tensor) -> Tensor:
        """``1000 t - 1``, rounded to the grid, from 0 to 999."""
        return (STEPS * time).round().clamp(1, STEPS) - 1

    def nearest(self, time: Tensor) -> Tensor:
        """The nearest time of the grid ``0.001, 0.002, ... 1``."""
        return (STEPS * time).round().clamp(1, STEPS) / STEPS

    def _exact_alpha(self, time: Tensor) -> Tensor:
        if time.device not in self._tables:
            self._tables[time.device] = self._tables[torch.device("cpu")].to(time.device)
        table = self._tables[time.device]
        position = (STEPS * time.double()).clamp(0, STEPS)
        # A float32 time of the grid is its entry, not a little beside it.
        whole = position.round()
        position = torch.where((position - whole).abs() < 1e-3, whole, position)
        below = position.floor().long().clamp(max=STEPS - 1)
        return torch.lerp(table[below], table[below + 1], position - below)


def scaled_linear_alphas(
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    snr_shift: float = 1.0,
    zero_snr: bool = False,
) -> Tensor:
    """Makes the noise schedule that latent diffusion uses, as a table for ``VariancePreserving``.

    The square root of beta rises linearly (arXiv 2112.10752). Optionally the signal-to-noise ratio
    is divided by ``snr_shift`` (CogVideoX), and alpha is then stretched so that the last one is 0
    and the first one stays (arXiv 2305.08891, Alg. 1).

    Returns:
        Alpha at each of the 1000 timesteps, float64.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, STEPS, dtype=torch.float64) ** 2
    squared = torch.cumprod(1 - betas, 0)
    alphas = (squared / (snr_shift + (1 - snr_shift) * squared)).sqrt()
    if zero_snr:
        alphas = (alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))
    return alphas


FLOW: Final = FlowMatching()
"""Flow matching with a network that predicts the velocity: Wan's, and that of the papers."""
