"""Forward passes of SD3's networks: the transformer's velocity, and the VAE's images.

Images are videos of one frame outside this folder: latents have T = 1 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# B batch, C channels, T = 1 frame, h, w latent height and width, H, W, S text tokens,
# D text width, P width of the pooled vector


def velocity(
    network: Any,
    x_t: Tensor,
    sigma: Tensor,
    text: Tensor,
    pooled: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Computes a network's velocity.

    Args:
        network: An ``SD3Transformer2DModel``, or an engine around one.
        x_t: ``[B, C, 1, h, w]``; cast to the network's precision.
        sigma: ``[B]`` float32.
        text: ``[B, S, D]``.
        pooled: ``[B, P]``.
        dtype: The network's precision, if autocast makes it differ from its weights'.

    Returns:
        ``[B, C, 1, h, w]`` in that precision.
    """
    module = getattr(network, "module", network)
    dtype = dtype or module.context_embedder.weight.dtype
    result: Tensor = network(
        hidden_states=x_t.to(dtype).squeeze(2),
        timestep=1000 * sigma,
        encoder_hidden_states=text.to(dtype),
        pooled_projections=pooled.to(dtype),
        return_dict=False,
    )[0]
    return result.unsqueeze(2)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decodes scaled latents ``[B, C, 1, h, w]`` to images ``[B, 1, H, W, 3]`` uint8."""
    images = decode(vae, latents).clamp(-1, 1).float()
    return images.div(2).add(0.5).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)[:, None]


def decode_frames(vae: Any, latents: Tensor, frames: Sequence[int]) -> Tensor:
    """Decodes images ``[B, 1, 3, H, W]`` in [-1, 1]; the decoder runs again in the backward pass.

    Args:
        vae: The VAE, frozen.
        latents: ``[B, C, 1, h, w]``.
        frames: Indices of the frames: 0 alone.
    """
    assert list(frames) == [0], "an image has one frame"
    if not torch.is_grad_enabled():
        return decode(vae, latents).clamp(-1, 1)[:, None]
    decoded: Tensor = checkpoint(lambda z: decode(vae, z), latents, use_reentrant=False)
    return decoded.clamp(-1, 1)[:, None]


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decodes scaled latents ``[B, C, 1, h, w]`` to ``[B, 3, H, W]``, about in [-1, 1]."""
    dtype = vae.decoder.conv_in.weight.dtype  # vae.dtype looks at every weight
    z = latents.squeeze(2).to(dtype) / float(vae.config.scaling_factor)
    image: Tensor = vae.decode(z + float(vae.config.shift_factor or 0.0), return_dict=False)[0]
    return image


def scaled_latents(vae: Any, encoded: Tensor) -> Tensor:
    """Scales what the VAE encoded, ``[B, C, 1, h, w]``, for the network."""
    return (encoded - float(vae.config.shift_factor or 0.0)) * float(vae.config.scaling_factor)
