"""Rectified-flow algebra with one convention: sigma = 0 is data, sigma = 1 is noise.

A noisy state is ``x_t = (1 - sigma) * x0 + sigma * noise`` and a network predicts the velocity
``v = noise - x0``. In the papers' notation alpha_t = 1 - sigma and sigma_t = sigma; the timestep
that a network is given is ``1000 * sigma``. A sigma is a float32 tensor ``[B]``, one per sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

# B batch; a latent has any further dimensions


def per_sample(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshapes ``sigma`` [B] so that it broadcasts over a latent [B, ...]."""
    return sigma.view(-1, *([1] * (like.ndim - 1)))


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Computes the forward process, ``(1 - sigma) x0 + sigma noise`` (arXiv 2605.30116, Eq. 5)."""
    s = per_sample(sigma, x0)
    return (1 - s) * x0 + s * noise


def x0_from_velocity(x_t: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Computes the data prediction of a velocity, ``x_t - sigma v``."""
    return x_t - per_sample(sigma, x_t) * velocity


def euler_to(x_t: Tensor, x0: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """Takes an Euler step of the probability flow to ``next_sigma`` with a data prediction.

    ``x_t + (next_sigma - sigma) v`` with ``v = (x_t - x0) / sigma``; sigma is above 0.
    """
    step = per_sample((next_sigma - sigma) / sigma, x_t)
    return x_t + step * (x_t - x0)


def add_noise_from(x_s: Tensor, noise: Tensor, start: float, sigma: Tensor) -> Tensor:
    """Noises a sample at time ``start`` to the times ``sigma`` above it.

    It is the forward process from there on, ``alpha x_s + beta noise`` with
    ``alpha = (1 - sigma) / (1 - start)`` and ``beta^2 = sigma^2 - alpha^2 start^2``: data that were
    noised to ``start`` become what ``add_noise`` makes of them. At ``start`` 0 it is ``add_noise``.
    """
    alpha, beta = _factors_from(x_s, start, sigma)
    return alpha * x_s + beta * noise


def velocity_from(x_s: Tensor, noise: Tensor, start: float, sigma: Tensor) -> Tensor:
    """Computes the target whose mean at ``add_noise_from(...)`` is the velocity there.

    The score of ``x_t`` given ``x_s`` is ``-noise / beta``, and a velocity is
    ``-(x_t + sigma score) / (1 - sigma)``. Together they are
    ``-x_s / (1 - start) + (sigma + (1 - sigma) start^2 / (1 - start)^2) / beta noise``, which is
    ``noise - x0`` at ``start`` 0. Regressing on it gives the velocity of the distribution of
    ``x_t``, whatever that of ``x_s`` is. It is Phased DMD's target (arXiv 2510.27684), with the
    coefficients of LightX2V's trainer at f8aee98 (``trainers/phased_dmd/math.py``).
    """
    _, beta = _factors_from(x_s, start, sigma)
    s = per_sample(sigma, x_s)
    of_noise = (s + (1 - s) * start**2 / (1 - start) ** 2) / beta
    return of_noise * noise - x_s / (1 - start)


def _factors_from(x_s: Tensor, start: float, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and beta of the forward process from ``start``; see ``add_noise_from``."""
    s = per_sample(sigma, x_s)
    alpha = (1 - s) / (1 - start)
    return alpha, (s**2 - alpha**2 * start**2).sqrt()


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Applies guidance in the form of Ho and Salimans, ``uncond + scale (cond - uncond)``.

    Scale 1 is no guidance. The pseudocode of arXiv 2605.30116 (App. B) writes
    ``cond + s (cond - uncond)``, which is this with ``scale = s + 1``.
    """
    return uncond + scale * (cond - uncond)


def fisher_weight(sigma: Tensor) -> Tensor:
    """Computes c(t) = alpha^2 / sigma^4 (Eq. 10), which turns data into score residuals.

    It is 6e6 at sigma = 0.02 and 0.02 at sigma = 0.9: see ``objectives.paper_weight``.
    """
    return (1 - sigma) ** 2 / sigma**4


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """Moves times towards noise, ``shift u / (1 + (shift - 1) u)``; 1 changes nothing."""
    return shift * u / (1 + (shift - 1) * u)


def sample_score_sigmas(u: Tensor, shift: float, low: float, high: float) -> Tensor:
    """Shifts uniform ``u`` in [0, 1) to score times and clamps them to ``[low, high]``."""
    return torch.clamp(shift_sigma(u, shift), low, high)


def sample_sigmas_between(
    u: Tensor, shift: float, low: float, high: float, least: float, most: float
) -> Tensor:
    """Shifts uniform ``u`` to score times that lie in ``[low, high)`` before they are clamped.

    Their distribution is that of ``sample_score_sigmas``, given that they lie there. Between 0 and
    1 they are the same numbers.

    Args:
        u: ``[B]`` uniform in [0, 1).
        shift: The flow shift.
        low: The lowest time.
        high: The end of the times, which is none of them unless it is 1.
        least: The lower clamp.
        most: The upper clamp.
    """
    if (low, high) == (0.0, 1.0):
        return sample_score_sigmas(u, shift, least, most)
    first, end = (t / (shift - (shift - 1) * t) for t in (low, high))
    sigma = shift_sigma(first + (end - first) * u, shift)
    # A thousandth of a timestep inside the interval: 1000 times a float32 is rounded, too.
    inside = (low + 1e-6 if low > 0 else low), (high - 1e-6 if high < 1 else high)
    return torch.clamp(sigma, max(least, inside[0]), min(most, inside[1]))


def cubic_sigmas(u: Tensor, low: float, high: float) -> Tensor:
    """Maps uniform ``u`` to times near noise, ``1 - u^3``, and clamps them.

    The map is that of arXiv 2507.18569, Sec. 4.2.1.
    """
    return torch.clamp(1 - u**3, low, high)
