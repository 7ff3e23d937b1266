"""Parts that trainings of bundled teachers share: optimizers, learning rates, states on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightx2v_sgmd.outputs import appearing


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Saves a state in one step, so that an interrupt leaves the old file whole."""
    with appearing(path) as temporary:
        torch.save(state, temporary)


def split_for_muon(
    module: torch.nn.Module,
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Kernels and matrices for Muon; gains, biases and other vectors for AdamW."""
    kernels: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for p in module.parameters():
        is_matrix = p.ndim >= 2 and min(p.shape[0], p.flatten(1).shape[1]) > 1
        (kernels if is_matrix else vectors).append(p)
    return kernels, vectors


def update(
    loss: torch.Tensor, network: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """One update of the weights by all optimizers, with the gradient's norm clipped to 1."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


def follow(average: dict[str, torch.Tensor], network: torch.nn.Module, step: int) -> None:
    """Moves the exponential average (0.999, less in the first steps) after update ``step``."""
    decay = min(0.999, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.values()), list(network.state_dict().values()), 1 - decay)


def set_lr(optimizers: list[torch.optim.Optimizer], base: list[float], factor: float) -> None:
    """Scales every group's learning rate from its base."""
    for optimizer, lr in zip(optimizers, base, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr * factor


def trapezoid(progress: float, step: int, warmup: int, decay_from: float) -> float:
    """Learning-rate factor: linear warm-up in steps, flat, then linear to zero."""
    return min(1.0, (step + 1) / warmup, max(0.0, (1 - progress) / (1 - decay_from)))


class Clock:
    """Counts the seconds of training across interruptions."""

    def __init__(self, before: float) -> None:
        self.start = time.monotonic() - before

    def seconds(self) -> float:
        """Seconds of training so far."""
        return time.monotonic() - self.start
