"""The experts of a model: the networks that serve one part of the time axis each.

Most models have one network for all times. Wan2.2-A14B has two: one for times from the boundary up
to noise, and one for the times below it. An expert is a model of its own with one network, so that
whatever loads, measures or writes a network does so for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from lightx2v_sgmd.files.weighted_lora import WeightedLora
from lightx2v_sgmd.interpolants import STEPS

if TYPE_CHECKING:
    from lightx2v_sgmd.families.base import Model

# B batch

HIGH_NOISE: Final = "high-noise"
LOW_NOISE: Final = "low-noise"


@dataclass(frozen=True)
class Expert:
    """One network of a model, and the times that it serves.

    Attributes:
        name: ``high-noise`` or ``low-noise``; empty for the only network of a model.
        low: The lowest of its times.
        high: The end of its times, which belongs to the expert above it if there is one.
        model: The same model with this network alone.
    """

    name: str
    low: float
    high: float
    model: Model


def only_expert(model: Model) -> tuple[Expert, ...]:
    """The experts of a model that has one network."""
    return (Expert("", 0.0, 1.0, model),)


def boundary_of(experts: Sequence[Expert]) -> float | None:
    """The time at which two experts meet, which belongs to the first; None for a single expert.

    The first expert serves the times next to noise.
    """
    return experts[0].low if len(experts) > 1 else None


def loras_of(experts: Sequence[Expert]) -> tuple[WeightedLora, ...]:
    """The LoRA files that are merged into the networks, those of the first expert first."""
    return tuple(lora for expert in experts for lora in expert.model.loras)


def expert_at(boundary: float | None, time: Tensor | float) -> int:
    """The index of the expert that serves a batch of times.

    Timesteps are compared as stock pipelines compare them: the first expert serves those of at
    least ``1000 * boundary``, in float32.

    Args:
        boundary: The result of ``boundary_of``.
        time: ``[B]`` or one time; all of them belong to one expert.
    """
    if boundary is None:
        return 0
    timesteps = STEPS * torch.as_tensor(time, dtype=torch.float32, device="cpu").reshape(-1)
    high = timesteps >= STEPS * boundary
    first = bool(high[0])
    assert bool((high == first).all()), f"times of two experts in one batch: {timesteps.tolist()}"
    return 0 if first else 1
