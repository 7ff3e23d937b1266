"""Forward passes of Wan's networks: the transformer's velocity, and the VAE's frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.families.text_rows import TEXT_LENGTH

# B batch, C channels, T latent frames, h, w latent height and width, F video frames, H, W,
# S text tokens, D text width


def velocity(
    network: Any, x_t: Tensor, sigma: Tensor, text: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Computes a network's velocity.

    Args:
        network: A ``WanTransformer3DModel``, or an engine around one.
        x_t: ``[B, C, T, h, w]``; cast to the network's precision.
        sigma: ``[B]`` float32.
        text: ``[B, S, D]`` from ``pad_text``; rows of zeros up to ``TEXT_LENGTH`` are added.
        dtype: The network's precision, if autocast makes it differ from its weights'.

    Returns:
        ``[B, C, T, h, w]`` in that precision.
    """
    module = getattr(network, "module", network)
    if not getattr(module, "text_padding_is_folded", False):
        text = torch.nn.functional.pad(text, (0, 0, 0, TEXT_LENGTH - text.shape[1]))
    dtype = dtype or module.patch_embedding.weight.dtype  # module.dtype looks at every weight
    result: Tensor = network(
        hidden_states=x_t.to(dtype),
        timestep=1000 * sigma,
        encoder_hidden_states=text.to(dtype),
        return_dict=False,
    )[0]
    return result


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decodes normalised latents ``[B, C, T, h, w]`` to video ``[B, F, H, W, 3]`` uint8."""
    return to_frames(vae.decode(vae_latents(vae, latents), return_dict=False)[0])


def vae_latents(vae: Any, latents: Tensor) -> Tensor:
    """Undoes the normalisation of latents ``[B, C, T, h, w]``, in the VAE's precision."""
    mean, std = _latent_statistics(vae, latents.device)
    return latents.to(mean.dtype) * std + mean


def normalized_latents(vae: Any, encoded: Tensor) -> Tensor:
    """Normalises what the VAE encoded, ``[B, C, T, h, w]``, for the network."""
    mean, std = _latent_statistics(vae, encoded.device)
    return (encoded - mean) / std


def _latent_statistics(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation of each latent channel, ``[1, C, 1, 1, 1]``."""
    shape = (1, -1, 1, 1, 1)
    dtype = vae.post_quant_conv.weight.dtype  # vae.dtype looks at every weight
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(device, dtype)
    std = torch.tensor(vae.config.latents_std).view(shape).to(device, dtype)
    return mean, std


def to_frames(video: Tensor) -> Tensor:
    """Converts the VAE's output ``[B, 3, F, H, W]`` in [-1, 1] to ``[B, F, H, W, 3]`` uint8."""
    video = torch.clamp(video, min=-1.0, max=1.0).float()
    video = video.div_(2).add_(0.5).mul_(255).round_().to(torch.uint8)
    return video.permute(0, 2, 3, 4, 1).contiguous()
