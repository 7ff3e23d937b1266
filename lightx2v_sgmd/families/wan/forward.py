"""Forward passes of Wan's networks: the transformer's velocity, and the VAE's frames."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.families.text_rows import TEXT_LENGTH

# B batch, C channels, T latent frames, h, w latent height and width, F video frames, H, W,
# S text tokens, D text width, L rows of an image, K tokens

MASK_CHANNELS: Final = 4
"""Channels of a mask over the frames of a latent frame: 1 where the frame is given."""


def predict(
    network: Any,
    x_t: Tensor,
    time: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Computes a network's velocity from text and, if there is one, a first frame.

    Args:
        network: A ``WanTransformer3DModel``, or an engine around one.
        x_t: ``[B, C, T, h, w]``; cast to the network's precision.
        time: ``[B]`` float32.
        conditioning: ``text`` ``[B, S, D]``. Networks with more channels also need
            ``image_latents`` ``[B, C, T, h, w]`` (the first frame and then grey, encoded) and, with
            a second cross-attention, ``image_rows`` ``[B, L, D']``. Networks that hold the first
            frame may have ``first_frame`` ``[B, C, 1, h, w]`` and ``is_given`` ``[B]``, 1 or 0.
        dtype: The network's precision, if autocast makes it differ from its weights'.

    Returns:
        ``[B, C, T, h, w]`` in that precision; float32 where a first frame is held.
    """
    text = conditioning["text"]
    if "first_frame" in conditioning:
        return _velocity_with_held_frame(network, x_t, time, conditioning, dtype)
    if "image_latents" in conditioning:
        latents = conditioning["image_latents"].to(x_t.dtype)
        given = latents.new_zeros(len(latents), MASK_CHANNELS, *latents.shape[2:])
        given[:, :, 0] = 1
        x_t = torch.cat([x_t, given, latents], dim=1)
    return velocity(network, x_t, time, text, dtype, conditioning.get("image_rows"))


def _velocity_with_held_frame(
    network: Any,
    x_t: Tensor,
    time: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype | None,
) -> Tensor:
    """The velocity of videos whose first latent frame is given, where ``is_given`` says so.

    The network sees the given frame without noise, at time 0, as Wan2.2's sampler does it. The
    result there is the velocity whose data prediction is the given frame, so that rollouts end at
    it and losses vanish on it.
    """
    x_t, first = x_t.float(), conditioning["first_frame"].float()
    is_given = conditioning["is_given"].to(time.dtype)
    held = is_given.view(-1, 1, 1, 1, 1) > 0
    noised = x_t[:, :, :1]
    seen = torch.cat([torch.where(held, first, noised), x_t[:, :, 1:]], dim=2)
    module = getattr(network, "module", network)
    _, patch_h, patch_w = module.config.patch_size
    times = time[:, None].repeat(1, x_t.shape[2])  # B T
    times[:, 0] = times[:, 0] * (1 - is_given)
    tokens = (x_t.shape[3] // patch_h) * (x_t.shape[4] // patch_w)
    times_BK = times.repeat_interleave(tokens, dim=1)
    predicted = velocity(network, seen, times_BK, conditioning["text"], dtype).float()
    towards = (noised - first) / time.clamp(min=1e-6).view(-1, 1, 1, 1, 1)
    return torch.cat([torch.where(held, towards, predicted[:, :, :1]), predicted[:, :, 1:]], dim=2)


def velocity(
    network: Any,
    x_t: Tensor,
    sigma: Tensor,
    text: Tensor,
    dtype: torch.dtype | None = None,
    image_rows: Tensor | None = None,
) -> Tensor:
    """Computes a network's velocity.

    Args:
        network: A ``WanTransformer3DModel``, or an engine around one.
        x_t: The network's channels, ``[B, in, T, h, w]``; cast to the network's precision.
        sigma: ``[B]`` float32, or ``[B, K]`` where each token has its own.
        text: ``[B, S, D]`` from ``pad_text``; rows of zeros up to ``TEXT_LENGTH`` are added.
        dtype: The network's precision, if autocast makes it differ from its weights'.
        image_rows: ``[B, L, D']`` for a network that attends to an image.

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
        **({} if image_rows is None else {"encoder_hidden_states_image": image_rows.to(dtype)}),
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
