"""The discriminator's parts that every strategy shares: heads, and features of the teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightx2v_sgmd.models.features import Heads, as_volume, capture_blocks, head_blocks
from lightx2v_sgmd.parallel.base import HeadSettings


def build_heads(network: Any, settings: HeadSettings) -> Heads:
    """Heads for a network's blocks, with the weights that their seed says."""
    config = network.config
    width = config.num_attention_heads * config.attention_head_dim
    count = len(head_blocks(config.num_layers, settings.every))
    return Heads(width, count, settings.channels, settings.seed, settings.frame_widths)


def backbone_features(
    network: Any, velocity: Callable[[], Tensor], x_t: Tensor, settings: HeadSettings
) -> list[Tensor]:
    """Block outputs ``[B, D, T, H, W]`` of one forward.

    Args:
        network: Whose blocks.
        velocity: Runs it at ``x_t``.
        x_t: ``[B, C, T, h, w]``, for the number of patches.
        settings: Which blocks.
    """
    with capture_blocks(network, settings.every) as found:
        velocity()
    frames, height, width = (
        length // patch
        for length, patch in zip(x_t.shape[2:], network.config.patch_size, strict=True)
    )
    return [as_volume(tokens, (frames, height, width)) for tokens in found]
