"""The result of a generation.

N videos, C channels, T latent frames, h, w latent height and width, F frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lightx2v_sgmd.files.video import Frames, write_frames


class Cancelled(Exception):
    """Generation was stopped from outside, by ``cancel``."""


@dataclass(frozen=True)
class Video:
    """One generated video.

    Attributes:
        prompt: The prompt.
        seed: The seed of its noise.
        latents: ``[C, T, h, w]`` float32, normalised as the network sees them.
        frames: ``[F, H, W, 3]`` uint8; no frames if decoding was not asked for.
        fps: Frames per second.
        timings: Wall time in seconds by stage: ``text``, ``denoise``, ``decode``.
    """

    prompt: str
    seed: int
    latents: Tensor
    frames: Frames
    fps: float
    timings: Mapping[str, float]

    def save(self, path: str | Path) -> Path:
        """Writes it as mp4, or an image as PNG; the file appears complete or not at all.

        Raises:
            UserError: the file cannot be written there.
        """
        return write_frames(self.frames, path, self.fps)


@dataclass(frozen=True)
class Generation:
    """Several generated videos.

    Attributes:
        prompts: The prompt of each video.
        seeds: The seed of each video; one seed, prompt and size give one video in any batch.
        latents: ``[N, C, T, h, w]`` float32, normalised as the network sees them.
        videos: The frames of each, ``[F, H, W, 3]`` uint8; empty if decoding was not asked for.
        fps: Frames per second.
        timings: Wall time in seconds by stage: ``text``, ``denoise``, ``decode``.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    latents: Tensor
    videos: tuple[Frames, ...]
    fps: float
    timings: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Video:
        import numpy as np

        frames = self.videos[index] if self.videos else np.zeros((0, 0, 0, 3), np.uint8)
        return Video(
            self.prompts[index],
            self.seeds[index],
            self.latents[index],
            frames,
            self.fps,
            self.timings,
        )
