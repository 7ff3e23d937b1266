"""A sample whose predictions are leaves, and the gradients of its losses; for tests of methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd import flow
from lightx2v_sgmd.methods import Losses, Sample
from lightx2v_sgmd.objectives import Weighting

SHAPE = (4, 2, 3, 2, 2)
LEAVES = ("x0", "x_fake", "x_real")
WEIGHTINGS: tuple[Weighting, ...] = ("paper", "normalized")


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def logits(x: Tensor, sigma: Tensor) -> Tensor:
    """The logits of a discriminator with two outputs."""
    flat = x.flatten(1)
    return torch.stack([flat.sum(1), (flat**2).mean(1) - sigma], 1)


def leaves() -> Sample:
    """A sample whose predictions are leaves, so that each path's gradient can be read."""
    x0, noise, x_fake, x_real, real = (normal(i, *SHAPE) for i in range(5))
    sigma = torch.tensor([0.02, 0.3, 0.7, 0.98], dtype=torch.float64)
    for leaf in (x0, x_fake, x_real):
        leaf.requires_grad_()
    x_t = flow.add_noise(x0, noise, sigma)
    velocity = (x_t - x_fake) / flow.per_sample(sigma, x_t)
    return Sample(x0, noise, sigma, x_t, velocity, x_fake, x_real, logits, real)


def gradients(losses: Losses, sample: Sample) -> list[Tensor | None]:
    """The gradients of the sum of the terms, with respect to the ``LEAVES``."""
    inputs = [getattr(sample, name) for name in LEAVES]
    loss = torch.stack(list(losses.values())).sum()
    return list(torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True))


def assert_same(mine: Losses, theirs: Losses, sample: Sample, factor: float = 1.0) -> None:
    """Equal values and equal gradients on every path, up to a factor."""
    exact: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
    values = [torch.stack(list(losses.values())).sum(0) for losses in (mine, theirs)]
    torch.testing.assert_close(values[0], factor * values[1], **exact)
    pairs = zip(gradients(mine, sample), gradients(theirs, sample), strict=True)
    for one, other in pairs:
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, factor * other, **exact)
