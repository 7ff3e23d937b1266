"""Latents to frames in chunks of a few latent frames, so that memory does not grow with the video.

Wan's VAE is causal in time: each of its convolutions needs the last two frames that it saw. They
live in a dictionary per video or tile, and the caller takes each chunk of frames as it comes, where
diffusers' ``vae.decode`` collects all of them first. The frames are equal up to rounding.

B batch, C channels, T latent frames, h, w latent height and width, F frames of a chunk, H, W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from infer.vae_decoder import VaeDecoder
from infer.vae_layers import Caches
from lightx2v_sgmd.models.wan import to_frames, vae_latents


@dataclass(frozen=True)
class Tiling:
    """Decodes overlapping squares one by one and blends their borders, to need less memory.

    The result differs slightly from decoding whole frames: a tile does not see beyond its border.

    Attributes:
        size: Side of a tile in pixels.
        stride: From one tile's start to the next one's; the rest of a tile is blended.
    """

    size: int = 256
    stride: int = 192

    def count(self, height: int, width: int) -> int:
        """How many tiles a frame of that size has."""
        if not self.needed(height, width):
            return 1
        return -(-height // self.stride) * -(-width // self.stride)

    def needed(self, height: int, width: int) -> bool:
        """Whether a frame of that size is more than one tile."""
        return height > self.size or width > self.size


_PIXELS_AT_ONCE: Final = 256 * 256


def videos_at_once(height: int, width: int) -> int:
    """How many videos of that size are decoded together: small ones alone keep no machine busy."""
    return max(1, _PIXELS_AT_ONCE // (height * width))


Gather = Callable[[list[tuple[int, Tensor]], list[tuple[int, ...]], Tensor], list[Tensor] | None]
"""Brings the tiles of all processes together.

In go the own ``(index, tile)``, the shapes of all, and a tensor of their kind; out come all tiles
in order, or None on processes that get nothing.
"""


@dataclass(frozen=True)
class Share:
    """This process's part of a decode that several do together.

    Attributes:
        rank: Which of them it is.
        size: How many they are; tile ``i`` is decoded by process ``i % size``.
        gather: Brings the tiles together.
    """

    rank: int
    size: int
    gather: Gather


FRAMES_AT_ONCE: Final = 2
"""Latent frames per chunk where nothing else is asked for."""


@torch.no_grad()
def decode_stream(
    decoder: VaeDecoder,
    latents: Tensor,
    tiling: Tiling | None = None,
    share: Share | None = None,
    frames_at_once: int = FRAMES_AT_ONCE,
) -> Iterator[Tensor]:
    """Decodes a video chunk by chunk: the first latent frame gives one frame, each next one four.

    In float32 the pixels are those of ``AutoencoderKLWan.decode`` within 1e-4 of their range from
    -1 to 1, so that frames differ by at most 1 of 255; with ``tiling`` those after
    ``vae.enable_tiling``.

    Args:
        decoder: The VAE's decoder.
        latents: ``[B, C, T, h, w]`` normalised, on the decoder's device.
        tiling: Tiles to decode one by one, for frames larger than one.
        share: With it and ``tiling``, only this process's tiles are decoded, and only the
            processes that ``share.gather`` gives the tiles to yield frames.
        frames_at_once: Latent frames per chunk after the first, which has one. It changes speed and
            memory, not the frames.

    Yields:
        ``[B, F, H, W, 3]`` uint8, on the decoder's device.
    """
    z = vae_latents(decoder, latents)
    if tiling is not None and tiling.needed(z.shape[3] * decoder.ratio, z.shape[4] * decoder.ratio):
        chunks = _tiled(decoder, z, tiling, share, frames_at_once)
    else:
        chunks = _whole(decoder, z, frames_at_once)
    # A loop's variable would hold the last chunk while the next one is decoded.
    yield from map(partial(_to_frames, decoder), chunks)


def chunks_of(z: Tensor, frames_at_once: int) -> Iterator[Tensor]:
    """The chunks ``[B, C, T, h, w]`` of a video's latents: one latent frame first, then several."""
    yield z[:, :, :1]
    for start in range(1, z.shape[2], frames_at_once):
        yield z[:, :, start : start + frames_at_once]


def _whole(decoder: VaeDecoder, z: Tensor, frames_at_once: int) -> Iterator[Tensor]:
    caches: Caches = {}
    for chunk in chunks_of(z, frames_at_once):
        yield decoder(chunk, caches)


def _tiled(
    decoder: VaeDecoder, z: Tensor, tiling: Tiling, share: Share | None, frames_at_once: int
) -> Iterator[Tensor]:
    """As ``vae.tiled_decode``, but with all tiles of one chunk finished before the next chunk."""
    size, step = tiling.size // decoder.ratio, tiling.stride // decoder.ratio
    tops, lefts = range(0, z.shape[3], step), range(0, z.shape[4], step)
    corners = [(top, left) for top in tops for left in lefts]
    mine = [
        index for index in range(len(corners)) if share is None or index % share.size == share.rank
    ]
    caches: dict[int, Caches] = {index: {} for index in mine}
    height, width = (side * decoder.ratio // decoder.patch for side in z.shape[3:])

    def blended(chunk: Tensor) -> Tensor | None:
        first = not caches[mine[0]]
        pieces = [chunk[..., top : top + size, left : left + size] for top, left in corners]
        done = [(index, decoder(pieces[index], caches[index])) for index in mine]
        tiles: list[Tensor] | None = [tile for _, tile in done]
        if share is not None:
            tiles = share.gather(done, [_decoded_shape(decoder, p, first) for p in pieces], z)
        if tiles is None:
            return None
        rows = [tiles[i : i + len(lefts)] for i in range(0, len(tiles), len(lefts))]
        return _blend(rows, tiling, decoder.patch)[:, :, :, :height, :width]

    for chunk in chunks_of(z, frames_at_once):
        video = blended(chunk)
        if video is not None:
            yield video
        del video


def _decoded_shape(decoder: VaeDecoder, piece: Tensor, first: bool) -> tuple[int, ...]:
    """The shape of a tile's frames, before patches are laid out."""
    height, width = (side * decoder.ratio // decoder.patch for side in piece.shape[3:])
    frames = decoder.frames(piece.shape[2], first)
    return piece.shape[0], int(decoder.config.out_channels), frames, height, width


def _blend(rows: list[list[Tensor]], tiling: Tiling, patch: int) -> Tensor:
    stride = tiling.stride // patch
    overlap = tiling.size // patch - stride
    result = []
    for i, row in enumerate(rows):
        cropped = []
        for j, tile in enumerate(row):
            if i > 0:
                _blend_edge(rows[i - 1][j], tile, overlap, dim=3)
            if j > 0:
                _blend_edge(row[j - 1], tile, overlap, dim=4)
            cropped.append(tile[:, :, :, :stride, :stride])
        result.append(torch.cat(cropped, dim=-1))
    return torch.cat(result, dim=3)


def _blend_edge(before: Tensor, tile: Tensor, overlap: int, dim: int) -> None:
    """Fades the start of a tile in from the end of the one before it, in place."""
    overlap = min(before.shape[dim], tile.shape[dim], overlap)
    weight = torch.arange(overlap, device=tile.device, dtype=tile.dtype) / overlap
    weight = weight.view(-1, *[1] * (4 - dim))
    end = before.narrow(dim, before.shape[dim] - overlap, overlap)
    start = tile.narrow(dim, 0, overlap)
    start.copy_(torch.lerp(end, start, weight))


def _to_frames(decoder: VaeDecoder, chunk: Tensor) -> Tensor:
    if decoder.patch > 1:
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        chunk = unpatchify(chunk, patch_size=decoder.patch)
    return to_frames(chunk)
