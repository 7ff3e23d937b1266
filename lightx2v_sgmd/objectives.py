"""Losses of score distillation, as pure functions of tensors.

Each loss returns ``[B]``, the mean over a sample's elements; the caller averages over the batch.
The data predictions are ``x_fake``, by the fake score at ``x_t``, and ``x_real``, by the guided
teacher at ``sg[x_t]`` (``sg``: stop-gradient). Equation numbers are those of SGMD (arXiv
2605.30116).

The paper writes sums over elements; means only rescale every term of an update alike.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, relu

Weighting = Literal["paper", "normalized"]
"""Weighting of a term in data predictions: clamped c(t), or ``1 / mean |x0 - x_real|``."""

# B batch, then any latent dimensions


def mean_per_sample(values: Tensor) -> Tensor:
    """Averages ``[B, ...]`` over all but the first dimension, to ``[B]``."""
    return values.flatten(1).mean(1)


def fisher(x_fake: Tensor, x_real: Tensor, weight: Tensor) -> Tensor:
    """Computes the Fisher term with a fixed teacher, ``weight/2 |x_fake - sg[x_real]|^2`` (Eq. 13).

    Gradient: through ``x_fake`` only.
    """
    return 0.5 * weight * mean_per_sample((x_fake - x_real.detach()) ** 2)


def implicit(x0: Tensor, x_fake: Tensor, x_real: Tensor, weight: Tensor) -> Tensor:
    """Computes SIM's implicit term L2, ``weight <x_fake - x_real, x0 - x_fake>`` (Eq. 10).

    Gradient: through every argument that carries one; the weight carries none.
    """
    return weight * mean_per_sample((x_fake - x_real) * (x0 - x_fake))


def distribution_matching(x0: Tensor, x_fake: Tensor, x_real: Tensor, floor: float) -> Tensor:
    """Computes DMD's surrogate, ``|x0 - sg[x0 - g]|^2 / 2``.

    With ``g = (x_fake - x_real) / normaliser``, its gradient at ``x0`` is ``g`` (arXiv 2311.18828,
    Eq. 7 and 8), there is no other gradient, and its value is ``|g|^2 / 2``. Each sample has
    its own normaliser, see ``normalized_weight``.
    """
    weight = normalized_weight(x0, x_real, floor)
    g = (x_fake - x_real).detach() * weight.view(-1, *([1] * (x0.ndim - 1)))
    return 0.5 * mean_per_sample((x0 - (x0.detach() - g)) ** 2)


def hinge(on_fake: Tensor, on_real: Tensor) -> Tensor:
    """Computes the discriminator's hinge loss of logits ``[B, L]`` (arXiv 2507.18569, Eq. 8)."""
    return relu(1 + on_fake).mean(1) + relu(1 - on_real).mean(1)


def negative_residual(x0: Tensor, x_fake: Tensor) -> Tensor:
    """Computes NR, ``-1/2 |sg[x0] - x_fake|^2`` (Eq. 18).

    Gradient: through ``x_fake`` only (Eq. 19, 20).
    """
    return -residual_contraction(x0, x_fake)


def residual_contraction(x0: Tensor, x_fake: Tensor) -> Tensor:
    """Computes RC, ``+1/2 |sg[x0] - x_fake|^2`` (Eq. 18); gradient through ``x_fake`` only."""
    return 0.5 * mean_per_sample((x0.detach() - x_fake) ** 2)


def prediction_matching(predicted: Tensor, target: Tensor) -> Tensor:
    """Computes the loss with which a network is trained, ``|predicted - sg[target]|^2``.

    Gradient: through ``predicted`` only. With the target that ``Interpolant.target`` makes of
    generated data, it is flow matching or denoising score matching on them. For ``velocity`` in
    flow matching and for ``v`` in a variance-preserving diffusion the loss equals
    ``2 RC / sigma^2``: the data residual is sigma times the prediction's. For ``epsilon`` it is
    ``2 RC alpha^2 / sigma^2``.
    """
    return mean_per_sample((predicted - target.detach()) ** 2)


def paper_weight(fisher_weight: Tensor, max_weight: float) -> Tensor:
    """Clamps c(t) of Eq. 10 from above: times near data (6e6 at sigma 0.02) would dominate."""
    return fisher_weight.clamp(max=max_weight)


def normalized_weight(x0: Tensor, x_real: Tensor, floor: float = 1e-5) -> Tensor:
    """Computes DMD's normaliser ``1 / mean |x0 - x_real|`` per sample (arXiv 2311.18828).

    It carries no gradient. The denominator is clamped at ``floor``.
    """
    return 1 / mean_per_sample((x0 - x_real).detach().abs()).clamp(min=floor)


def term_weight(
    x0: Tensor, x_real: Tensor, fisher_weight: Tensor, weighting: Weighting, max_weight: float
) -> Tensor:
    """Computes the weight ``[B]`` of a term in data predictions, under either weighting.

    Args:
        x0: The student's data.
        x_real: The teacher's data prediction.
        fisher_weight: c(t), ``Interpolant.fisher_weight``.
        weighting: The kind of weight.
        max_weight: Clamp of c(t).
    """
    if weighting == "paper":
        return paper_weight(fisher_weight, max_weight)
    return normalized_weight(x0, x_real)
