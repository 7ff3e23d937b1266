"""Forward passes of CogVideoX's networks: the transformer's v, and the VAE's frames.

The transformer and its stock pipeline have time before channels in their latents. Everything
outside this folder has channels first, as for other families.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightx2v_sgmd.families.wan.forward import to_frames

# B batch, C channels, T latent frames, h, w latent height and width, F video frames, H, W,
# S text tokens, D text width


def predict_v(
    network: Any, x_t: Tensor, timestep: Tensor, text: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Computes a network's v.

    Args:
        network: A ``CogVideoXTransformer3DModel``, or an engine around one.
        x_t: ``[B, C, T, h, w]``; cast to the network's precision.
        timestep: ``[B]``, whole numbers from 0 to 999.
        text: ``[B, S, D]``.
        dtype: The network's precision, if autocast makes it differ from its weights'.

    Returns:
        ``[B, C, T, h, w]`` in that precision.
    """
    module = getattr(network, "module", network)
    dtype = dtype or module.patch_embed.proj.weight.dtype
    rotary = None
    if module.config.use_rotary_positional_embeddings:
        size = (x_t.shape[2], x_t.shape[3], x_t.shape[4])
        rotary = rotary_tables(module.config, size, x_t.device)
    result: Tensor = network(
        hidden_states=x_t.to(dtype).transpose(1, 2),
        timestep=timestep,
        encoder_hidden_states=text.to(dtype),
        image_rotary_emb=rotary,
        return_dict=False,
    )[0]
    return result.transpose(1, 2)


def rotary_tables(
    config: Any, size: tuple[int, int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The cosines and sines ``[tokens, head_dim]`` of the rotary positions, float32.

    Positions are those of the size of training, stretched over that of the video, as the stock
    pipeline computes them.

    Args:
        config: The network's configuration.
        size: Latent frames, height and width.
        device: Device of the tables.
    """
    patch = config.patch_size
    trained = (config.sample_height // patch, config.sample_width // patch)
    grid = (size[0], size[1] // patch, size[2] // patch)
    return _rotary_tables(config.attention_head_dim, trained, grid, device)


@lru_cache(maxsize=8)
def _rotary_tables(
    head_dim: int, trained: tuple[int, int], grid: tuple[int, int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    frames, height, width = grid
    crop = get_resize_crop_region_for_grid((height, width), trained[1], trained[0])
    with torch.no_grad():
        cos, sin = get_3d_rotary_pos_embed(
            embed_dim=head_dim,
            crops_coords=crop,
            grid_size=(height, width),
            temporal_size=frames,
            device=device,
        )
    return cos, sin


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decodes scaled latents ``[B, C, T, h, w]`` to video ``[B, F, H, W, 3]`` uint8."""
    return to_frames(vae.decode(_vae_latents(vae, latents), return_dict=False)[0])


def decode_frames(vae: Any, latents: Tensor, frames: Sequence[int]) -> Tensor:
    """Decodes a whole video and takes frames ``[B, len(frames), 3, H, W]``, with gradient.

    The decoder runs again in the backward pass.
    """

    def run(z: Tensor) -> Tensor:
        video: Tensor = vae.decode(_vae_latents(vae, z), return_dict=False)[0]
        return video[:, :, list(frames)].transpose(1, 2).clamp(-1, 1)

    if not torch.is_grad_enabled():
        return run(latents)
    decoded: Tensor = checkpoint(run, latents, use_reentrant=False)
    return decoded


def _vae_latents(vae: Any, latents: Tensor) -> Tensor:
    """Undoes the scaling of latents, in the VAE's precision."""
    dtype = vae.decoder.conv_in.conv.weight.dtype  # vae.dtype looks at every weight
    return latents.to(dtype) / float(vae.config.scaling_factor)
