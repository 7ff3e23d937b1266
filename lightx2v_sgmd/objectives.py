"""Losses of score distillation, as pure functions of tensors.

Each returns ``[B]``, the mean over a sample's elements; the caller averages over the batch.
Data predictions: ``x_fake`` by the fake score at ``x_t``, ``x_real`` by the guided teacher at
``sg[x_t]`` (``sg``: stop-gradient). Equation numbers are those of SGMD, arXiv 2605.30116.

The paper writes sums over elements; means only rescale every term of an update alike.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, relu

from lightx2v_sgmd.flow import fisher_weight

Weighting = Literal["paper", "normalized"]
"""Of a term in data predictions: by c(t) clamped, or by ``1 / mean |x0 - x_real|`` per sample."""

# B batch, then any latent dimensions


def mean_per_sample(values: Tensor) -> Tensor:
    """``[B, ...]`` to ``[B]``."""
    return values.flatten(1).mean(1)


def fisher(x_fake: Tensor, x_real: Tensor, weight: Tensor) -> Tensor:
    """Teacher stop-gradient Fisher, ``weight/2 |x_fake - sg[x_real]|^2`` (Eq. 13).

    Gradient: through ``x_fake`` only.
    """
    return 0.5 * weight * mean_per_sample((x_fake - x_real.detach()) ** 2)


def implicit(x0: Tensor, x_fake: Tensor, x_real: Tensor, weight: Tensor) -> Tensor:
    """SIM's implicit term L2, ``weight <x_fake - x_real, x0 - x_fake>`` (Eq. 10).

    Gradient: through every argument that carries one; the weight carries none.
    """
    return weight * mean_per_sample((x_fake - x_real) * (x0 - x_fake))


def distribution_matching(x0: Tensor, x_fake: Tensor, x_real: Tensor, floor: float) -> Tensor:
    """DMD's surrogate, ``|x0 - sg[x0 - g]|^2 / 2`` with ``g = (x_fake - x_real) / normaliser``.

    Its gradient at ``x0`` is ``g`` (arXiv 2311.18828, Eq. 7 and 8) and there is no other; its value
    is ``|g|^2 / 2``. The normaliser is of each sample, see ``normalized_weight``.
    """
    weight = normalized_weight(x0, x_real, floor)
    g = (x_fake - x_real).detach() * weight.view(-1, *([1] * (x0.ndim - 1)))
    return 0.5 * mean_per_sample((x0 - (x0.detach() - g)) ** 2)


def hinge(on_fake: Tensor, on_real: Tensor) -> Tensor:
    """The discriminator's hinge loss of logits ``[B, L]`` (arXiv 2507.18569, Eq. 8)."""
    return relu(1 + on_fake).mean(1) + relu(1 - on_real).mean(1)


def negative_residual(x0: Tensor, x_fake: Tensor) -> Tensor:
    """NR, ``-1/2 |sg[x0] - x_fake|^2`` (Eq. 18); gradient through ``x_fake`` only (Eq. 19, 20)."""
    return -residual_contraction(x0, x_fake)


def residual_contraction(x0: Tensor, x_fake: Tensor) -> Tensor:
    """RC, ``+1/2 |sg[x0] - x_fake|^2`` (Eq. 18); gradient through ``x_fake`` only."""
    return 0.5 * mean_per_sample((x0.detach() - x_fake) ** 2)


def velocity_matching(velocity: Tensor, noise: Tensor, x0: Tensor) -> Tensor:
    """Flow matching on generated data, ``|v - (noise - sg[x0])|^2``; gradient through ``velocity``.

    It equals ``2 RC / sigma^2``: the data residual is sigma times the velocity residual.
    """
    return mean_per_sample((velocity - (noise - x0.detach())) ** 2)


def paper_weight(sigma: Tensor, max_weight: float) -> Tensor:
    """c(t) of Eq. 10 clamped from above: unclamped, rare small sigmas (6e6 at 0.02) rule."""
    return fisher_weight(sigma).clamp(max=max_weight)


def normalized_weight(x0: Tensor, x_real: Tensor, floor: float = 1e-5) -> Tensor:
    """``1 / mean |x0 - x_real|`` per sample, without gradient: DMD's normaliser (arXiv 2311.18828).

    The denominator is clamped at ``floor``, never a result repaired afterwards.
    """
    return 1 / mean_per_sample((x0 - x_real).detach().abs()).clamp(min=floor)


def term_weight(
    x0: Tensor, x_real: Tensor, sigma: Tensor, weighting: Weighting, max_weight: float
) -> Tensor:
    """The weight ``[B]`` of a term in data predictions, under either weighting."""
    if weighting == "paper":
        return paper_weight(sigma, max_weight)
    return normalized_weight(x0, x_real)
