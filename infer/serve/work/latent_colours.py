"""A rough film of an unfinished video: a linear map from latents to colours, learned as we go.

Decoding a video takes longer than a step, and latents are nearly linear in their pixels' mean
colour. So each finished video teaches a least-squares map ``[C + 1] -> RGB``, and the data
predictions of later videos are shown through it, one small picture for each latent frame. A worker
shows nothing before it has finished its first video.

C channels, T latent frames, h, w latent height and width, F frames, H, W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightx2v_sgmd.files.video import Frames

if TYPE_CHECKING:
    from lightx2v_sgmd.interpolants import Interpolant

FRAMES_EACH: Final = 4
"""Frames of a latent frame; the first latent frame has one, and so has an image."""
_LEAST: Final = 1e-3
"""Ridge term for each pixel: channels that never change stay without weight."""


class LinearDecoder:
    """A map from latents to colours, fitted to the videos that it learned from.

    Attributes:
        videos: The number of them.
    """

    def __init__(self) -> None:
        self._left: Tensor | None = None
        self._right = torch.zeros(0)
        self._solved: Tensor | None = None
        self.videos = 0

    def learn(self, latents: Tensor, colours: Tensor) -> None:
        """Adds a video.

        Args:
            latents: ``[C, T, h, w]``.
            colours: ``[3, T, h, w]`` from 0 to 1, the mean colours of the pixels and frames that
                belong to each latent.
        """
        rows = _with_one(latents)
        self.videos += 1
        if self._left is None:
            self._left = torch.zeros(len(rows), len(rows), dtype=torch.float64)
            self._right = torch.zeros(len(rows), 3, dtype=torch.float64)
        self._left += rows @ rows.T + _LEAST * rows.shape[1] * torch.eye(len(rows))
        self._right += rows @ colours.double().flatten(1).T
        self._solved = torch.linalg.solve(self._left, self._right)

    def decode(self, latents: Tensor) -> Frames | None:
        """Pictures ``[T, h, w, 3]`` uint8 of ``[C, T, h, w]``; None before anything was learned."""
        if self._solved is None:
            return None
        colours = (self._solved.T @ _with_one(latents)).reshape(3, *latents.shape[1:])
        pictures: Frames = (
            (255 * colours.clamp(0, 1)).round().permute(1, 2, 3, 0).to(torch.uint8).numpy()
        )
        return pictures


class FrameMeans:
    """Takes a video's frames as they are decoded, and averages those of each latent.

    Args:
        shape: ``T, h, w``.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = tuple(shape)
        self._sums = np.zeros((*self._shape, 3))
        self._count = 0

    def watching(self, chunks: Iterator[Frames]) -> Iterator[Frames]:
        """The same chunks ``[F, H, W, 3]``, which are added on their way."""
        for chunk in chunks:
            self._add(chunk)
            yield chunk

    def _add(self, chunk: Frames) -> None:
        steps, height, width = self._shape
        tall, wide = chunk.shape[1] // height, chunk.shape[2] // width
        small = chunk.reshape(len(chunk), height, tall, width, wide, 3).mean(axis=(2, 4))
        for frame in small:
            at = (self._count + FRAMES_EACH - 1) // FRAMES_EACH
            self._sums[min(at, steps - 1)] += frame / (FRAMES_EACH if at else 1)
            self._count += 1

    @property
    def colours(self) -> Tensor | None:
        """``[3, T, h, w]`` from 0 to 1; None if not all frames came."""
        if self._count != FRAMES_EACH * (self._shape[0] - 1) + 1:
            return None
        return torch.from_numpy(self._sums / 255).permute(3, 0, 1, 2)


def data_prediction(
    before: Tensor, after: Tensor, interpolant: Interpolant, times: Tensor
) -> Tensor:
    """The data prediction of a step of Euler or DDIM, from its two states.

    Both states have the same data and noise: ``before = alpha x0 + sigma noise``, and ``after`` has
    the factors of the next time.

    Args:
        before: The state before the step.
        after: The state after it.
        interpolant: The factors at a time.
        times: The times of the two states, ``[2]``.
    """
    alpha, next_alpha = interpolant.alpha(times).tolist()
    sigma, next_sigma = interpolant.sigma(times).tolist()
    common = sigma * next_alpha - next_sigma * alpha
    x0: Tensor = (sigma * after - next_sigma * before) / common
    return x0


def renoised_prediction(
    after: Tensor, noise: Tensor, interpolant: Interpolant, next_time: Tensor
) -> Tensor:
    """The data prediction of a step of the solver ``renoise``, from its state and its new noise.

    The state is ``alpha x0 + sigma noise`` at the next time, ``[1]``.
    """
    alpha, sigma = interpolant.alpha(next_time).item(), interpolant.sigma(next_time).item()
    return (after - sigma * noise) / alpha


def animation(pictures: NDArray[np.uint8], fps: float) -> bytes:
    """Pictures ``[T, h, w, 3]`` as an animated WebP; ``fps`` is that of the video's frames."""
    first, *others = (Image.fromarray(picture) for picture in pictures)
    file = io.BytesIO()
    duration = max(1, round(1000 * FRAMES_EACH / fps))
    first.save(
        file, "WEBP", save_all=True, append_images=others, duration=duration, loop=0, quality=80
    )
    return file.getvalue()


def _with_one(latents: Tensor) -> Tensor:
    """``[C + 1, T h w]`` float64, the last row ones."""
    rows = latents.detach().cpu().double().flatten(1)
    return torch.cat([rows, torch.ones(1, rows.shape[1], dtype=torch.float64)])
