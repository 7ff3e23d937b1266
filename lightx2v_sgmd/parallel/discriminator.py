"""Discriminator heads and teacher features, for every strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.methods.base import DISCRIMINATOR, PIXEL_DISCRIMINATOR
from lightx2v_sgmd.networks.discriminator_heads import (
    FrameHead,
    Head,
    Heads,
    as_volume,
    capture_blocks,
    head_blocks,
)
from lightx2v_sgmd.parallel.base import HeadSettings
from lightx2v_sgmd.parallel.sequence import whole_tokens


def build_heads(model: Model, settings: HeadSettings) -> dict[str, Heads]:
    """The heads by role, for a model's blocks and, if given, for a vision encoder's layers."""
    layers = model.head_widths
    widths = [layers[index] for index in head_blocks(len(layers), settings.every)]
    # App. B.1 and B.2 of arXiv 2507.18569: one design for images, another one for videos.
    kind = FrameHead if model.size_rules.images else Head
    heads = {DISCRIMINATOR: Heads(kind, widths, settings.channels, settings.seed)}
    if settings.frame_widths:
        heads[PIXEL_DISCRIMINATOR] = Heads(
            FrameHead, settings.frame_widths, settings.channels, settings.seed
        )
    return heads


def backbone_features(
    model: Model, network: Any, run: Callable[[], Tensor], x_t: Tensor, settings: HeadSettings
) -> list[Tensor]:
    """Runs a network and returns block outputs ``[B, D, T, H, W]``, whole on every rank.

    Of a model that makes images they are ``[B, D, H, W]``, as its heads take them.

    Args:
        model: The network's model, for the size of a patch.
        network: The network with the blocks.
        run: Function that runs the network at ``x_t``.
        x_t: The input ``[B, C, T, h, w]``; its size gives the number of patches.
        settings: Names the blocks that have heads.
    """
    layers = model.head_layers(getattr(network, "module", network))
    with capture_blocks(layers, settings.every, model.video_tokens) as blocks:
        run()
    images = model.size_rules.images
    frames, height, width = (
        length // patch for length, patch in zip(x_t.shape[2:], model.size_rules.patch, strict=True)
    )
    count = frames * height * width

    def volume(tokens: Tensor) -> Tensor:
        if tokens.ndim == 4:  # a map of a U-Net
            return tokens
        whole = as_volume(whole_tokens(network, tokens, count), (frames, height, width))
        return whole.squeeze(2) if images else whole

    return [volume(tokens) for tokens in blocks]
