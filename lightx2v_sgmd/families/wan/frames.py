"""Decodes some frames of a video from its latents, with gradient, without decoding all of it.

Wan's VAE is causal in time. Up to its last temporal upsampling, the decoder is small, and a frame
depends on all latents before it in most videos (it looks back 32 latent frames there): that part
runs on the latents up to the last frame asked for. What follows is nearly all of the work, and
looks back only 26 frames: it runs for each frame on its own window.

Both parts are computed again in the backward pass, layer by layer, and the second one frame by
frame, so that the activations of one layer on one window are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# B batch, C channels, T latent frames, h, w latent height and width, F frames, H, W

_CONVOLUTION, _BLOCK = 2, 4
"""Frames that a causal convolution, and a residual block of two, look back."""


@dataclass(frozen=True)
class _Layer:
    """A part of the decoder, ``[B, C, F, h, w]`` to its like, and the frames that it looks back."""

    run: Callable[[Tensor], Tensor]
    looks_back: int = 0


def frame_window(vae: Any, frames: Sequence[int]) -> tuple[int, int]:
    """The window of a frame in the decoder's last part, and the latents that all frames need.

    Args:
        vae: An ``AutoencoderKLWan``.
        frames: Indices of frames.

    Returns:
        Number of frames of a window, the frame itself included, and number of latent frames.
    """
    _, late = _parts(vae)
    ratio = 2 ** sum(bool(doubles) for doubles in vae.config.temperal_downsample)
    return 1 + sum(layer.looks_back for layer in late), 1 + -(-max(frames) // ratio)


def decode_frames(vae: Any, latents: Tensor, frames: Sequence[int]) -> Tensor:
    """Decodes frames of videos; gradient flows to the latents.

    Args:
        vae: An ``AutoencoderKLWan``, frozen.
        latents: ``[B, C, T, h, w]`` in the VAE's scale (``wan.vae_latents``).
        frames: Indices of the frames.

    Returns:
        ``[B, len(frames), 3, H, W]`` in [-1, 1]: what ``vae.decode`` gives at these indices, up to
        rounding.
    """
    if vae.config.patch_size is not None or vae.config.is_residual:  # Wan2.2's: another decoder
        video = _again(lambda z: vae.decode(z, return_dict=False)[0], latents)
        return video[:, :, list(frames)].transpose(1, 2)
    early, late = _parts(vae)
    window, count = frame_window(vae, frames)
    x = latents[:, :, :count]
    for layer in early:
        x = _again(layer.run, x)
    # Each window ends with its frame; at the video's beginning it is shorter.
    windows = (x[:, :, max(0, frame + 1 - window) : frame + 1] for frame in frames)
    run = partial(_last_frame, late)
    decoded = [_again(run, each) for each in windows]
    return torch.clamp(torch.stack(decoded, 1), min=-1.0, max=1.0)


def _parts(vae: Any) -> tuple[list[_Layer], list[_Layer]]:
    """The decoder's layers, up to the last temporal upsampling and after it."""
    decoder = vae.decoder
    early, late = [_Layer(vae.post_quant_conv), _Layer(decoder.conv_in, _CONVOLUTION)], []
    middle = decoder.mid_block
    late.append(_Layer(middle.resnets[0], _BLOCK))
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        late += [_Layer(attention), _Layer(resnet, _BLOCK)]
    for block in decoder.up_blocks:
        late += [_Layer(resnet, _BLOCK) for resnet in block.resnets]
        upsample = None if block.upsamplers is None else block.upsamplers[0]
        if upsample is not None and upsample.mode == "upsample3d":
            early, late = [*early, *late, _Layer(partial(_double_frames, upsample))], []
        if upsample is not None:
            late.append(_Layer(upsample))  # without a cache it doubles height and width alone
    late.append(_Layer(partial(_output, decoder), _CONVOLUTION))
    return early, late


def _double_frames(upsample: Any, x: Tensor) -> Tensor:
    """Doubles all frames but the first, which the temporal convolution never sees."""
    first, rest = x[:, :, :1], x[:, :, 1:]
    if not rest.shape[2]:
        return first
    pairs = upsample.time_conv(rest).unflatten(1, (2, -1))  # B 2 C F h w
    return torch.cat([first, pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], 2)


def _output(decoder: Any, x: Tensor) -> Tensor:
    result: Tensor = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
    return result


def _last_frame(layers: Sequence[_Layer], x: Tensor) -> Tensor:
    """The last frame ``[B, C, H, W]`` that the layers make of a window.

    A layer pads the window's beginning with zeros, which is right where the video begins. The
    frames that are wrong elsewhere are no longer needed, and are cut off.
    """
    needed = 1 + sum(layer.looks_back for layer in layers)
    for layer in layers:
        x = _again(layer.run, x)
        needed -= layer.looks_back
        x = x[:, :, -needed:]
    return x[:, :, -1]


def _again(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Runs a function that the backward pass will run again."""
    if not torch.is_grad_enabled():
        return run(x)
    result: Tensor = checkpoint(run, x, use_reentrant=False)
    return result
