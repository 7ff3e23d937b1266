"""The pixel discriminator's frozen part: decoded frames through a vision encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.families.wan import WanModel, vae_latents
from lightx2v_sgmd.networks.vision_encoder import VisionBackbone

# B batch, C channels, T latent frames, h, w latent height and width, D width


class PixelFeatures:
    """VAE and vision encoder, both frozen and whole on every rank; gradient flows to the latents.

    Args:
        model: Whose VAE decodes.
        path: The vision encoder's folder.
        device: The device of both.
    """

    def __init__(self, model: WanModel, path: str, device: torch.device) -> None:
        self._vae: Any = model.load_vae(device=device)
        self._vae.eval().requires_grad_(False)
        self._vision = VisionBackbone(path, device)

    def __call__(self, x0: Tensor, frames: Sequence[int]) -> list[Tensor]:
        """Normalised latents ``[B, C, T, h, w]`` to maps ``[B * len(frames), D, h', w']``."""
        video = self._vae.decode(vae_latents(self._vae, x0), return_dict=False)[0]
        chosen = video[:, :, list(frames)].transpose(1, 2).flatten(0, 1)
        return self._vision.features(chosen)
