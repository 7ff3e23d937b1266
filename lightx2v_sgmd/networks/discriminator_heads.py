"""Discriminator heads on the block outputs of a frozen network.

The design follows ADM, arXiv 2507.18569, Sec. 4.1 and App. B.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# B batch, N tokens, D width, T, H, W latent frames, height and width in patches


def head_blocks(num_blocks: int, every: int) -> list[int]:
    """Indices of the blocks with a head: every n-th, so that a network of n blocks has one."""
    return list(range(min(every, num_blocks) - 1, num_blocks, every))


@contextmanager
def capture_blocks(
    blocks: Sequence[nn.Module] | nn.ModuleList, every: int, tokens_of: Callable[[Any], Tensor]
) -> Iterator[list[Tensor]]:
    """A context in which a forward of a network fills the list with outputs ``[B, N, D]``.

    Blocks that gradient checkpointing runs again are not captured again.

    Args:
        blocks: The network's blocks, or other layers that heads may read.
        every: Number of blocks for each output.
        tokens_of: Function that takes the video's tokens out of what a block returned.
    """
    found: list[Tensor] = []
    captured = head_blocks(len(blocks), every)

    def capture(module: nn.Module, args: object, output: Any) -> None:
        if len(found) < len(captured):
            found.append(tokens_of(output))

    hooks = [blocks[index].register_forward_hook(capture) for index in captured]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def as_volume(tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Reshapes ``[B, N, D]`` to ``[B, D, T, H, W]``; ``size`` is ``(T, H, W)``."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *size)


class Head(nn.Module):
    """One head: pairs of a 3x3x3 convolution and a 3x3 convolution of stride 2, then logits.

    App. B.2 lists the layers of a block once: both convolutions, GroupNorm of 32 groups and SiLU.
    The project's own choices are a norm and SiLU after each convolution, two blocks, 64 channels,
    and one logit for each place by a 1x1 convolution.

    Args:
        width: Width of the backbone's blocks.
        channels: Channels inside the head, a multiple of 32.
        stages: Number of pairs.
    """

    def __init__(self, width: int, channels: int, stages: int = 2) -> None:
        super().__init__()
        self.volume = nn.ModuleList(
            nn.Conv3d(channels if i else width, channels, 3, padding=1) for i in range(stages)
        )
        self.frame = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(stages)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(32, channels) for _ in range(2 * stages))
        self.logits = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, D, T, H, W]`` to logits ``[B, L]``, one for each remaining position."""
        batch, frames = x.shape[0], x.shape[2]
        norms = iter(self.norms)
        for volume, frame in zip(self.volume, self.frame, strict=True):
            x = nn.functional.silu(next(norms)(volume(x)))
            x = frame(x.transpose(1, 2).flatten(0, 1))
            x = x.view(batch, frames, *x.shape[1:]).transpose(1, 2)
            x = nn.functional.silu(next(norms)(x))
        logits: Tensor = self.logits(x.transpose(1, 2).flatten(0, 1))
        return logits.view(batch, -1)


class FrameHead(nn.Module):
    """A head for frames: 4x4 convolutions of stride 2, GroupNorm 32 and SiLU, logits (App. B.1).

    Args:
        width: Width of the backbone's layer.
        channels: Channels inside the head, a multiple of 32.
        stages: Number of convolutions.
    """

    def __init__(self, width: int, channels: int, stages: int = 2) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels if i else width, channels, 4, stride=2, padding=2)
            for i in range(stages)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(32, channels) for _ in range(stages))
        self.logits = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, D, h, w]`` to logits ``[N, L]``."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = nn.functional.silu(norm(convolution(x)))
        logits: Tensor = self.logits(x)
        return logits.flatten(1)


class Heads(nn.Module):
    """The trainable part of a discriminator: one head for each captured block or layer.

    The same seed gives the same weights on every process.

    Args:
        kind: ``Head`` for a network's blocks, ``FrameHead`` for a vision encoder's layers.
        widths: Widths of the blocks or layers.
        channels: Channels inside a head.
        seed: Random seed of the initial weights.
    """

    def __init__(
        self, kind: type[Head] | type[FrameHead], widths: Sequence[int], channels: int, seed: int
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(kind(width, channels) for width in widths)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps each head's features to the logits ``[B, L]`` of all heads side by side."""
        dtype = next(self.parameters()).dtype
        logits = [head(x.to(dtype)) for head, x in zip(self.heads, features, strict=True)]
        return torch.cat(logits, 1).float()
