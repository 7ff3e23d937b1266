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
from torch import Tensor, nn

from infer.vae.kernels import EAGER, Kernels, fused, rows
from infer.vae.layers import (
    Attention,
    Caches,
    CausalConvolution,
    Convolution,
    NormConvolution,
    Residual,
    Target,
    Upsample,
)

COMPILED_FROM: Final = 256 * 256
"""Pixels from which compiling pays: smaller videos are decoded before their graphs are ready."""


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of a VAE's decode. No setting changes the frames beyond rounding.

    Attributes:
        channels_last: Compute in the memory layout ``channels_last_3d``, which convolutions read
            without a copy on CPUs and on GPUs with tensor cores.
        compile: Compile the operations between the convolutions, for frames or tiles of at least
            ``COMPILED_FROM`` pixels.
    """

    channels_last: bool = True
    compile: bool = False


class VaeDecoder(nn.Module):
    """The decoder of an ``AutoencoderKLWan``.

    It has the decoder's weights on its own device and in its own layout, and does not change the
    VAE, which may be freed.

    Attributes:
        config: The VAE's configuration.
        settings: The settings of the decode.
        post_quant_conv: The VAE's layer of that name.
    """

    def __init__(
        self,
        vae: Any,
        settings: DecodeSettings | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Takes the weights.

        Args:
            vae: ``AutoencoderKLWan``.
            settings: Default: channels last, not compiled.
            device: Default the VAE's.
        """
        super().__init__()
        self.config: Any = vae.config
        self.settings = settings = settings or DecodeSettings()
        device = device or vae.post_quant_conv.weight.device
        layout = torch.channels_last_3d if settings.channels_last else torch.contiguous_format
        target = Target(device, layout)
        self.kernels: Kernels = EAGER
        if settings.compile:
            self.kernels = fused(device.type)
        decoder, mid = vae.decoder, vae.decoder.mid_block
        self.post_quant_conv = Convolution(vae.post_quant_conv, target)
        self.conv_in = CausalConvolution(decoder.conv_in, target)
        self.middle = nn.ModuleList([Residual(mid.resnets[0], target)])
        for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
            self.middle += [Attention(attention, target), Residual(resnet, target)]
        self.blocks = nn.ModuleList(_Block(block, target) for block in decoder.up_blocks)
        self.conv_out = NormConvolution(decoder.norm_out, decoder.conv_out, target)

    @property
    def ratio(self) -> int:
        """Pixels per latent position, in height and in width."""
        return int(self.config.scale_factor_spatial)

    @property
    def patch(self) -> int:
        """Height and width of the patches that the channels of the output stand for."""
        return int(self.config.patch_size or 1)

    def frames(self, latent_frames: int, first: bool) -> int:
        """The number of frames that a chunk of latent frames gives."""
        return 1 if first else latent_frames * int(2 ** sum(self.config.temperal_downsample))

    def forward(self, z: Tensor, caches: Caches) -> Tensor:
        """The frames of the next latent frames of a video.

        Args:
            z: ``[B, C, T, h, w]``. A video's first chunk has T = 1.
            caches: Empty before the first chunk; pass the same dictionary for the next ones.

        Returns:
            ``[B, 3, F, H, W]``: one frame of the first latent frame, then four of each; before
            patches are laid out, if the VAE has patches.
        """
        first = not caches
        large = z.shape[3] * z.shape[4] * self.ratio**2 >= COMPILED_FROM
        kernels = self.kernels if large else EAGER
        x = self.post_quant_conv(z)
        x = self.conv_in.causal(x, caches)
        for layer in self.middle:
            x = layer(x) if isinstance(layer, Attention) else layer(x, kernels, caches)
        # Each loop below holds one input of a layer at a time; a call per block would hold two.
        for block in self.blocks:
            assert isinstance(block, _Block)
            before = x if block.shortcut is not None else None
            for resnet in block.resnets:
                x = resnet(x, kernels, caches)
            if block.upsample is not None:
                x = block.upsample(x, caches)
            if block.shortcut is not None:
                kernels.add(rows(x), rows(block.shortcut(before, first_chunk=first)))
            del before
        return self.conv_out.run(self.conv_out.normed(x, kernels, caches), caches)


class _Block(nn.Module):
    """diffusers' ``WanUpBlock``, and ``WanResidualUpBlock`` of Wan2.2."""

    def __init__(self, block: Any, target: Target) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(resnet, target) for resnet in block.resnets)
        upsampler = getattr(block, "upsampler", None)
        if getattr(block, "upsamplers", None) is not None:
            upsampler = block.upsamplers[0]
        self.upsample: Upsample | None = None if upsampler is None else Upsample(upsampler, target)
        self.shortcut: Callable[..., Tensor] | None = getattr(block, "avg_shortcut", None)
