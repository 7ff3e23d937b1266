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
from typing import Any, Final

import torch
from torch import Tensor

from infer.vae.decoder import VaeDecoder
from infer.vae.layers import Caches
from lightx2v_sgmd.families.wan.forward import to_frames, vae_latents


@dataclass(frozen=True)
class Tiling:
    """Decodes overlapping squares one by one and blends their borders, to need less memory.

    The result differs slightly from decoding whole frames: a tile does not see beyond its border.

    Attributes:
        size: Side of a tile in pixels.
        stride: Pixels from one tile's start to the next one's; the rest of a tile is blended.
    """

    size: int = 256
    stride: int = 192

    def count(self, height: int, width: int) -> int:
        """The number of tiles of a frame of that size."""
        if not self.needed(height, width):
            return 1
        return -(-height // self.stride) * -(-width // self.stride)

    def decoded_pixels(self, height: int, width: int) -> int:
        """Pixels of all tiles of a frame, overlaps included."""
        rows, columns = (
            sum(min(self.size, side - start) for start in range(0, side, self.stride))
            for side in (height, width)
        )
        return rows * columns

    def needed(self, height: int, width: int) -> bool:
        """True if a frame of that size is more than one tile."""
        return height > self.size or width > self.size


_PIXELS_AT_ONCE: Final = 256 * 256


def videos_at_once(height: int, width: int) -> int:
    """The number of videos of that size decoded together: a small one keeps no machine busy."""
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
        rank: The index of this process.
        size: The number of processes; tile ``i`` is decoded by process ``i % size``.
        gather: Brings the tiles together.
    """

    rank: int
    size: int
    gather: Gather


FRAMES_AT_ONCE: Final = 2
"""Latent frames per chunk where nothing else is asked for."""


@torch.no_grad()
def decode_stream(
    vae: Any,
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
        vae: A ``VaeDecoder``, or an ``AutoencoderKLWan`` whose decoder is then prepared first.
        latents: ``[B, C, T, h, w]`` normalised, on the VAE's device.
        tiling: Tiles to decode one by one, for frames larger than one.
        share: With it and ``tiling``, only this process's tiles are decoded, and only the
            processes that ``share.gather`` gives the tiles to yield frames.
        frames_at_once: Latent frames per chunk after the first, which has one. It changes speed and
            memory, not the frames.

    Yields:
        ``[B, F, H, W, 3]`` uint8, on the VAE's device. A process that decodes tiles alone gives
        chunks of no frames until all tiles are decoded, so that the caller can stop meanwhile.
    """
    decoder = vae if isinstance(vae, VaeDecoder) else VaeDecoder(vae)
    z = vae_latents(decoder, latents)
    if tiling is None or not tiling.needed(*(side * decoder.ratio for side in z.shape[3:])):
        chunks = _whole(decoder, z, frames_at_once)
    elif share is None:
        chunks = _tile_by_tile(_Tiles(decoder, z, tiling), frames_at_once)
    else:
        chunks = _shared(_Tiles(decoder, z, tiling), share, z, frames_at_once)
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


class _Tiles:
    """A video's latents cut into tiles, as ``vae.tiled_decode`` cuts them."""

    def __init__(self, decoder: VaeDecoder, z: Tensor, tiling: Tiling) -> None:
        self.decoder, self.tiling = decoder, tiling
        size, step = tiling.size // decoder.ratio, tiling.stride // decoder.ratio
        tops, self.lefts = range(0, z.shape[3], step), range(0, z.shape[4], step)
        self.latents = [
            z[..., top : top + size, left : left + size] for top in tops for left in self.lefts
        ]
        height, width = (side * decoder.ratio // decoder.patch for side in z.shape[3:])
        self.height, self.width = height, width

    def join(self, tiles: list[Tensor]) -> Tensor:
        """Whole frames of the decoded tiles, which are blended in place."""
        columns = len(self.lefts)
        rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
        frames = _blend(rows, self.tiling, self.decoder.patch)
        return frames[:, :, :, : self.height, : self.width]


def _tile_by_tile(tiles: _Tiles, frames_at_once: int) -> Iterator[Tensor]:
    """Decodes one tile after the other, so that the convolutions remember one tile's frames only.

    Chunks without frames come first, one for each chunk of a tile: the caller may stop there.
    """
    done: list[list[Tensor]] = []
    for latents in tiles.latents:
        done.append([])
        caches: Caches = {}
        for chunk in chunks_of(latents, frames_at_once):
            done[-1].append(tiles.decoder(chunk, caches))
            yield done[-1][-1].new_empty((*done[-1][-1].shape[:2], 0, tiles.height, tiles.width))
        del caches
    for _ in range(len(done[0])):
        yield tiles.join([chunks.pop(0) for chunks in done])


def _shared(tiles: _Tiles, share: Share, z: Tensor, frames_at_once: int) -> Iterator[Tensor]:
    """Decodes this process's tiles chunk by chunk; the first process joins those of all."""
    mine = range(share.rank, len(tiles.latents), share.size)
    caches: dict[int, Caches] = {index: {} for index in mine}
    chunks = zip(*(chunks_of(latents, frames_at_once) for latents in tiles.latents), strict=True)
    for position, pieces in enumerate(chunks):
        done = [(index, tiles.decoder(pieces[index], caches[index])) for index in mine]
        shapes = [_decoded_shape(tiles.decoder, piece, position == 0) for piece in pieces]
        decoded = share.gather(done, shapes, z)
        del done
        if decoded is not None:
            yield tiles.join(decoded)
        del decoded


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
