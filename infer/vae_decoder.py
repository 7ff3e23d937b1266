"""Wan's VAE decoder on chunks of several latent frames, with diffusers' weights.

The VAE is causal in time, so a chunk may have any number of latent frames. Larger chunks need more
memory, fewer kernel launches and fewer copies of the frames that convolutions remember.

B batch, C channels, T frames, h, w latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from infer.vae_kernels import EAGER, Kernels, compiled, rows
from infer.vae_layers import (
    Attention,
    Caches,
    CausalConvolution,
    NormConvolution,
    Residual,
    Upsample,
)


@dataclass(frozen=True)
class DecodeSettings:
    """How a VAE decodes; no setting changes the frames beyond rounding.

    Attributes:
        frames_at_once: Latent frames per chunk. The first chunk has one, whatever is asked for.
        channels_last: Compute in the memory layout ``channels_last_3d``.
        compile: Compile the operations between the convolutions.
    """

    frames_at_once: int = 2
    channels_last: bool = True
    compile: bool = False


DEFAULT: Final = DecodeSettings()


class VaeDecoder:
    """The decoder of an ``AutoencoderKLWan``, whose weights it shares or copies, never changes."""

    def __init__(self, vae: Any, settings: DecodeSettings = DEFAULT) -> None:
        self.settings = settings
        decoder, cuda = vae.decoder, vae.post_quant_conv.weight.device.type == "cuda"
        layout = torch.channels_last_3d if settings.channels_last else torch.contiguous_format
        self.layout = layout
        self.kernels: Kernels = compiled(adds_bias=cuda) if settings.compile else EAGER
        self.conv_in = CausalConvolution(decoder.conv_in, layout)
        mid = decoder.mid_block
        self.middle: list[Residual | Attention] = [Residual(mid.resnets[0], layout)]
        for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
            self.middle += [Attention(attention), Residual(resnet, layout)]
        self.blocks = [_Block(block, layout) for block in decoder.up_blocks]
        self.conv_out = NormConvolution(decoder.norm_out, decoder.conv_out, layout)

    def decode(self, z: Tensor, caches: Caches) -> Tensor:
        """The frames of the next latent frames of a video.

        Args:
            z: ``[B, C, T, h, w]`` after ``post_quant_conv``. A video's first chunk has T = 1.
            caches: Empty before the first chunk; pass the same dictionary for the next ones.

        Returns:
            ``[B, 3, F, H, W]``: one frame of the first latent frame, then four of each; before
            patches are laid out, if the VAE has patches.
        """
        first = not caches
        x = self.conv_in.causal(z.shape, lambda out: out.copy_(z), caches)
        for layer in self.middle:
            x = layer(x) if isinstance(layer, Attention) else layer(x, self.kernels, caches)
        for block in self.blocks:
            x = block(x, self.kernels, caches, first)
        return self.conv_out.normed(x, self.kernels, caches)


class _Block:
    """diffusers' ``WanUpBlock``, and ``WanResidualUpBlock`` of Wan2.2."""

    def __init__(self, block: Any, layout: torch.memory_format) -> None:
        self.resnets = [Residual(resnet, layout) for resnet in block.resnets]
        upsampler = getattr(block, "upsampler", None)
        if getattr(block, "upsamplers", None) is not None:
            upsampler = block.upsamplers[0]
        self.upsample = None if upsampler is None else Upsample(upsampler, layout)
        self.shortcut: Callable[..., Tensor] | None = getattr(block, "avg_shortcut", None)

    def __call__(self, x: Tensor, kernels: Kernels, caches: Caches, first: bool) -> Tensor:
        before = x
        for resnet in self.resnets:
            x = resnet(x, kernels, caches)
        if self.upsample is not None:
            x = self.upsample(x, caches)
        if self.shortcut is not None:
            kernels.add(rows(x), rows(self.shortcut(before, first_chunk=first)))
        return x
