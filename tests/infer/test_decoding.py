from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infer.decoding import Share, Tiling, decode_stream
from lightx2v_sgmd.models.wan import decode_latents, open_wan


@pytest.fixture(params=["tiny", "sprites"])
def vae(request: pytest.FixtureRequest, shared_student: Path) -> torch.nn.Module:
    """Without patches, and with patches of 2 (the bundled model's)."""
    return open_wan(shared_student if request.param == "tiny" else "sprites").load_vae()


def latents_for(vae: torch.nn.Module, frames: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, vae.config.z_dim, frames, side, side, generator=generator)


def test_streaming_is_bit_equal_to_decoding_at_once(vae: torch.nn.Module) -> None:
    latents = latents_for(vae, 4, 4)
    chunks = list(decode_stream(vae, latents))
    assert [chunk.shape[1] for chunk in chunks] == [1, 4, 4, 4]
    assert torch.equal(torch.cat(chunks, dim=1), decode_latents(vae, latents))


def test_two_streams_do_not_disturb_each_other(vae: torch.nn.Module) -> None:
    first, second = latents_for(vae, 3, 4), latents_for(vae, 3, 4).flip(2)
    pairs = list(zip(decode_stream(vae, first), decode_stream(vae, second), strict=True))
    assert torch.equal(torch.cat([a for a, _ in pairs], 1), decode_latents(vae, first))
    assert torch.equal(torch.cat([b for _, b in pairs], 1), decode_latents(vae, second))


def test_tiled_streaming_is_bit_equal_to_diffusers_tiling(vae: torch.nn.Module) -> None:
    ratio = vae.spatial_compression_ratio
    latents = latents_for(vae, 2, 7)
    tiling = Tiling(size=4 * ratio, stride=3 * ratio)
    got = torch.cat(list(decode_stream(vae, latents, tiling)), dim=1)
    whole = decode_latents(vae, latents)
    vae.enable_tiling(tiling.size, tiling.size, tiling.stride, tiling.stride)
    assert torch.equal(got, decode_latents(vae, latents))
    assert got.shape == whole.shape and not torch.equal(got, whole)


def test_a_video_of_one_tile_is_not_tiled(vae: torch.nn.Module) -> None:
    latents = latents_for(vae, 2, 4)
    tiling = Tiling(size=4 * vae.spatial_compression_ratio, stride=8)
    got = torch.cat(list(decode_stream(vae, latents, tiling)), dim=1)
    assert torch.equal(got, decode_latents(vae, latents))


def test_ranks_share_the_tiles(vae: torch.nn.Module) -> None:
    """Three processes, played in turn: the first one blends what all of them decoded."""
    ratio = vae.spatial_compression_ratio
    latents, tiling = latents_for(vae, 2, 7), Tiling(size=4 * ratio, stride=3 * ratio)
    alone = torch.cat(list(decode_stream(vae, latents, tiling)), dim=1)
    post: list[list[tuple[int, torch.Tensor]]] = [[], []]

    def give(done: list[tuple[int, torch.Tensor]], *_: object) -> None:
        post[given[0]].extend(done)
        given[0] += 1

    for rank in (1, 2):
        given = [0]
        assert list(decode_stream(vae, latents, tiling, Share(rank, 3, give))) == []
    assert [len(tiles) for tiles in post] == [6, 6]  # of 9, for two latent frames

    def collect(
        done: list[tuple[int, torch.Tensor]], shapes: list[tuple[int, ...]], like: torch.Tensor
    ) -> list[torch.Tensor]:
        assert all(tile.shape == shapes[index] for index, tile in done)
        return [tile for _, tile in sorted(post.pop(0) + done, key=lambda pair: pair[0])]

    got = torch.cat(list(decode_stream(vae, latents, tiling, Share(0, 3, collect))), dim=1)
    assert torch.equal(got, alone)
