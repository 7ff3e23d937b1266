"""The pixel discriminator's frozen part: decoded frames through a vision encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.networks.vision_encoder import VisionBackbone
from lightx2v_sgmd.parallel.collectives import Group, gathered_parts, shared_input

# B batch, C channels, T latent frames, h, w latent height and width, D width


def frames_per_rank(frames: int, ranks: int) -> int:
    """The number of frames that each of the ranks decodes that share a video."""
    return -(-frames // ranks)


class PixelFeatures:
    """VAE and vision encoder, both frozen and whole on every rank; gradient flows to the latents.

    One video is decoded at a time, as far as the frames need it, and one frame goes through the
    encoder at a time. The backward pass computes both again. Ranks that share a video share its
    frames, too, and gather what the encoder makes of them.

    Args:
        model: The model whose VAE decodes.
        vae: The VAE.
        vision: The vision encoder.
        group: The ranks that share a video, if there are several.
    """

    def __init__(
        self, model: Model, vae: Any, vision: VisionBackbone, group: Group | None = None
    ) -> None:
        self._model, self._vae = model, vae.eval().requires_grad_(False)
        self._vision, self._group = vision, group

    @classmethod
    def load(
        cls, model: Model, path: str, device: torch.device, group: Group | None = None
    ) -> PixelFeatures:
        """Loads a model's VAE and the vision encoder in the folder ``path`` to a device."""
        return cls(model, model.load_vae(device=device), VisionBackbone(path, device), group)

    def __call__(self, x0: Tensor, frames: Sequence[int]) -> list[Tensor]:
        """Normalised latents ``[B, C, T, h, w]`` to maps ``[B * len(frames), D, h', w']``."""
        if self._group is None:
            return self._maps(x0, frames)
        # Each rank has equally many; the last frame stands in for those that are missing.
        size, videos = self._group.size(), len(x0)
        count = frames_per_rank(len(frames), size)
        padded = [*frames, *[frames[-1]] * (size * count - len(frames))]
        own = padded[self._group.rank() * count :][:count]
        whole = []
        for part in self._maps(shared_input(x0, self._group), own):
            by_rank = gathered_parts(part, self._group).view(size, videos, count, *part.shape[1:])
            by_video = by_rank.transpose(0, 1).flatten(1, 2)[:, : len(frames)]
            whole.append(by_video.flatten(0, 1))
        return whole

    def _maps(self, x0: Tensor, frames: Sequence[int]) -> list[Tensor]:
        decoded = (self.decode(latents[None], frames) for latents in x0)
        features = [self.features(frame[None]) for video in decoded for frame in video]
        return [torch.cat(maps) for maps in zip(*features, strict=True)]

    def decode(self, x0: Tensor, frames: Sequence[int]) -> Tensor:
        """Decodes frames ``[len(frames), 3, H, W]`` of one video, ``[1, C, T, h, w]``."""
        return self._model.decode_frames(self._vae, x0, frames)[0]

    def features(self, frame: Tensor) -> list[Tensor]:
        """The encoder's maps ``[1, D, h', w']`` of a frame ``[1, 3, H, W]``."""
        if not torch.is_grad_enabled():
            return self._vision.features(frame)
        maps: list[Tensor] = checkpoint(self._vision.features, frame, use_reentrant=False)
        return maps
