"""Latents to frames, a latent frame at a time, so that memory does not grow with the video.

Wan's VAE is causal in time: each of its convolutions needs the last two frames that it saw, which
diffusers keeps in a list. Here the list lives in the decoder below, whose caller takes each
chunk of frames as it comes, where ``vae.decode`` collects them all first. The numbers are the same.

B batch, C channels, T latent frames, h, w latent height and width, F frames of a chunk, H, W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

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


@torch.no_grad()
def decode_stream(
    vae: Any, latents: Tensor, tiling: Tiling | None = None, share: Share | None = None
) -> Iterator[Tensor]:
    """Decodes a video chunk by chunk: the first latent frame gives one frame, each next one four.

    Equal to ``decode_latents`` bit by bit, and with ``tiling`` to it after ``vae.enable_tiling``.

    Args:
        vae: ``AutoencoderKLWan``.
        latents: ``[B, C, T, h, w]`` normalised, on the VAE's device.
        tiling: Tiles to decode one by one, for frames larger than one.
        share: With it and ``tiling``, only this process's tiles are decoded, and only the
            processes that ``share.gather`` gives the tiles to yield frames.

    Yields:
        ``[B, F, H, W, 3]`` uint8, on the VAE's device.
    """
    z = vae_latents(vae, latents)
    ratio = int(vae.spatial_compression_ratio)
    if tiling is not None and tiling.needed(z.shape[3] * ratio, z.shape[4] * ratio):
        chunks = _tiled(vae, z, tiling, share)
    else:
        chunks = _whole(vae, z)
    for chunk in chunks:
        yield _to_frames(vae, chunk)


def _whole(vae: Any, z: Tensor) -> Iterator[Tensor]:
    memory = _Memory(vae)
    z = vae.post_quant_conv(z)
    for index in range(z.shape[2]):
        yield memory.decode(z[:, :, index : index + 1], first=index == 0)


def _tiled(vae: Any, z: Tensor, tiling: Tiling, share: Share | None) -> Iterator[Tensor]:
    """As ``vae.tiled_decode``, but with the tiles of one latent frame finished before the next."""
    ratio, patch = int(vae.spatial_compression_ratio), int(vae.config.patch_size or 1)
    size, step = tiling.size // ratio, tiling.stride // ratio
    tops, lefts = range(0, z.shape[3], step), range(0, z.shape[4], step)
    corners = [(top, left) for top in tops for left in lefts]
    mine = [
        index for index in range(len(corners)) if share is None or index % share.size == share.rank
    ]
    memories = {index: _Memory(vae) for index in mine}
    height, width = z.shape[3] * ratio // patch, z.shape[4] * ratio // patch
    for frame in range(z.shape[2]):
        pieces = [
            z[:, :, frame : frame + 1, top : top + size, left : left + size]
            for top, left in corners
        ]
        done = []
        for index in mine:
            piece = vae.post_quant_conv(pieces[index])
            done.append((index, memories[index].decode(piece, first=frame == 0)))
        if share is None:
            tiles: list[Tensor] | None = [tile for _, tile in done]
        else:
            count = 1 if frame == 0 else 2 ** sum(vae.config.temperal_downsample)
            tiles = share.gather(done, [_decoded(vae, piece, count) for piece in pieces], z)
        if tiles is not None:
            rows = [tiles[i : i + len(lefts)] for i in range(0, len(tiles), len(lefts))]
            yield _blend(vae, rows, tiling, patch)[:, :, :, :height, :width]


def _decoded(vae: Any, piece: Tensor, frames: int) -> tuple[int, ...]:
    """The shape of a tile's frames, before patches are laid out."""
    ratio = int(vae.spatial_compression_ratio) // int(vae.config.patch_size or 1)
    height, width = (side * ratio for side in piece.shape[3:])
    return piece.shape[0], int(vae.config.out_channels), frames, height, width


def _blend(vae: Any, rows: list[list[Tensor]], tiling: Tiling, patch: int) -> Tensor:
    stride = tiling.stride // patch
    overlap = tiling.size // patch - stride
    result = []
    for i, row in enumerate(rows):
        kept = []
        for j, tile in enumerate(row):
            if i > 0:
                tile = vae.blend_v(rows[i - 1][j], tile, overlap)
            if j > 0:
                tile = vae.blend_h(row[j - 1], tile, overlap)
            kept.append(tile[:, :, :, :stride, :stride])
        result.append(torch.cat(kept, dim=-1))
    return torch.cat(result, dim=3)


class _Memory:
    """What the decoder's convolutions remember of the frames before."""

    def __init__(self, vae: Any) -> None:
        self.decoder = vae.decoder
        self.cache: list[Tensor | None] = [None] * int(vae._cached_conv_counts["decoder"])

    def decode(self, z: Tensor, first: bool) -> Tensor:
        """The frames ``[B, C, F, H, W]`` of the next latent frame."""
        frames: Tensor = self.decoder(z, feat_cache=self.cache, feat_idx=[0], first_chunk=first)
        return frames


def _to_frames(vae: Any, chunk: Tensor) -> Tensor:
    if vae.config.patch_size is not None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        chunk = unpatchify(chunk, patch_size=vae.config.patch_size)
    return to_frames(chunk)
