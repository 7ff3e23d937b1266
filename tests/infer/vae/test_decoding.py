from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan

from infer.vae.decoder import DecodeSettings, VaeDecoder
from infer.vae.decoding import Share, Tiling, chunks_of, decode_stream
from infer.vae.kernels import Kernels, fused_add, fused_norm_silu
from infer.vae.layers import Caches
from lightx2v_sgmd.families.wan.forward import decode_latents, vae_latents
from lightx2v_sgmd.families.wan.opening import open_wan


def wan22() -> AutoencoderKLWan:
    """A small VAE of Wan2.2's kind: residual blocks and patches."""
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
        latents_mean=[0.1] * 4,
        latents_std=[0.9] * 4,
    ).eval()


def with_random_weights(vae: Any) -> Any:
    """Gives the norms and biases values too; they are ones and zeros in a new model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if name.endswith(("gamma", "bias")):
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
    return vae.requires_grad_(False)


@pytest.fixture(params=["tiny", "sprites", "wan2.2"])
def vae(request: pytest.FixtureRequest, shared_student: Path) -> Any:
    """VAEs without patches, with patches of 2 (the bundled model's) and of Wan2.2's kind."""
    made = {
        "tiny": lambda: open_wan(shared_student).load_vae(),
        "sprites": lambda: open_wan("sprites").load_vae(),
        "wan2.2": wan22,
    }
    return with_random_weights(made[request.param]())


def latents_for(vae: Any, frames: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, vae.config.z_dim, frames, side, side + 1, generator=generator)


def assert_same_frames(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape and got.dtype == torch.uint8
    assert (got.int() - expected.int()).abs().max() <= 1
    assert (got != expected).float().mean() < 1e-3


def pixels(decoder: VaeDecoder, z: torch.Tensor, frames_at_once: int) -> torch.Tensor:
    caches: Caches = {}
    chunks = [decoder(chunk, caches) for chunk in chunks_of(z, frames_at_once)]
    return torch.cat(chunks, dim=2)


def stock_pixels(vae: Any, z: torch.Tensor) -> torch.Tensor:
    """The output of diffusers' decoder, before it clamps."""
    z, caches = vae.post_quant_conv(z), [None] * vae._cached_conv_counts["decoder"]
    frames = [
        vae.decoder(frame, feat_cache=caches, feat_idx=[0], first_chunk=index == 0)
        for index, frame in enumerate(z.split(1, dim=2))
    ]
    return torch.cat(frames, dim=2)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("frames_at_once", [1, 2, 4])
def test_pixels_equal_those_of_diffusers(
    vae: Any, frames_at_once: int, channels_last: bool
) -> None:
    z = vae_latents(vae, latents_for(vae, 5, 4))
    decoder = VaeDecoder(vae, DecodeSettings(channels_last=channels_last))
    with torch.no_grad():
        expected = stock_pixels(vae, z)
        got = pixels(decoder, z, frames_at_once)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_diffusers(vae: Any, dtype: torch.dtype) -> None:
    z = vae_latents(vae, latents_for(vae, 3, 4))
    with torch.no_grad():
        exact = stock_pixels(vae, z)
        vae.to(dtype)
        stock = (stock_pixels(vae, z.to(dtype)) - exact).square().mean().sqrt()
        ours = (pixels(VaeDecoder(vae), z.to(dtype), 2) - exact).square().mean().sqrt()
    assert 0 < ours < 1.1 * stock


def test_streaming_equals_decoding_at_once(vae: Any) -> None:
    latents = latents_for(vae, 4, 4)
    chunks = list(decode_stream(VaeDecoder(vae), latents, frames_at_once=2))
    per_latent = 2 ** sum(vae.config.temperal_downsample)
    assert [chunk.shape[1] for chunk in chunks] == [1, 2 * per_latent, per_latent]
    assert_same_frames(torch.cat(chunks, dim=1), decode_latents(vae, latents))


def test_an_image_is_one_chunk(vae: Any) -> None:
    latents = latents_for(vae, 1, 4)
    (chunk,) = decode_stream(VaeDecoder(vae), latents)
    assert_same_frames(chunk, decode_latents(vae, latents))


def test_the_vae_is_left_as_it_was(vae: Any) -> None:
    before = {name: (weight.clone(), weight.stride()) for name, weight in vae.state_dict().items()}
    list(decode_stream(VaeDecoder(vae), latents_for(vae, 2, 4)))
    after = vae.state_dict()
    assert list(after) == list(before)
    for name, (weight, stride) in before.items():
        assert torch.equal(after[name], weight) and after[name].stride() == stride


def test_two_streams_do_not_disturb_each_other(vae: Any) -> None:
    first, second = latents_for(vae, 3, 4), latents_for(vae, 3, 4).flip(2)
    decoder = VaeDecoder(vae)
    streams = [decode_stream(decoder, latents, frames_at_once=1) for latents in (first, second)]
    pairs = list(zip(*streams, strict=True))
    assert_same_frames(torch.cat([a for a, _ in pairs], 1), decode_latents(vae, first))
    assert_same_frames(torch.cat([b for _, b in pairs], 1), decode_latents(vae, second))


@pytest.mark.parametrize("frames_at_once", [1, 3])
def test_tiled_streaming_equals_diffusers_tiling(vae: Any, frames_at_once: int) -> None:
    ratio = vae.spatial_compression_ratio
    latents = latents_for(vae, 3, 7)
    tiling = Tiling(size=4 * ratio, stride=3 * ratio)
    stream = decode_stream(VaeDecoder(vae), latents, tiling, frames_at_once=frames_at_once)
    got = torch.cat(list(stream), dim=1)
    whole = decode_latents(vae, latents)
    vae.enable_tiling(tiling.size, tiling.size, tiling.stride, tiling.stride)
    assert_same_frames(got, decode_latents(vae, latents))
    assert got.shape == whole.shape and (got.int() - whole.int()).abs().max() > 1


def test_a_caller_can_stop_while_tiles_are_decoded(vae: Any) -> None:
    ratio = vae.spatial_compression_ratio
    tiling = Tiling(size=4 * ratio, stride=4 * ratio)
    chunks = list(decode_stream(VaeDecoder(vae), latents_for(vae, 3, 7), tiling))
    per_latent = 2 ** sum(vae.config.temperal_downsample)
    assert [chunk.shape[1] for chunk in chunks] == 8 * [0] + [1, 2 * per_latent]  # of 4 tiles
    assert len({chunk.shape[2:] for chunk in chunks}) == 1


def test_kernels_that_add_biases_give_the_same(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the compiled operations add the convolutions' biases; here they run uncompiled."""
    z = vae_latents(vae, latents_for(vae, 3, 4))
    decoder = VaeDecoder(vae)
    decoder.kernels = Kernels(fused_norm_silu, fused_add, adds_bias=True)
    small = pixels(decoder, z, 2)
    assert torch.equal(small, pixels(VaeDecoder(vae), z, 2))  # too small to be worth compiling
    monkeypatch.setattr("infer.vae.decoder.COMPILED_FROM", 0)
    got = pixels(decoder, z, 2)
    assert not torch.equal(got, small)
    torch.testing.assert_close(got, stock_pixels(vae, z), atol=1e-4, rtol=0)


def test_a_video_of_one_tile_is_not_tiled(vae: Any) -> None:
    latents = latents_for(vae, 2, 3)
    tiling = Tiling(size=4 * vae.spatial_compression_ratio, stride=8)
    decoder = VaeDecoder(vae)
    got = torch.cat(list(decode_stream(decoder, latents, tiling)), dim=1)
    assert torch.equal(got, torch.cat(list(decode_stream(decoder, latents)), dim=1))


def test_ranks_share_the_tiles(vae: Any) -> None:
    """Three processes, played in turn: the first one blends what all of them decoded."""
    ratio = vae.spatial_compression_ratio
    latents, tiling = latents_for(vae, 4, 7), Tiling(size=4 * ratio, stride=3 * ratio)
    decoder = VaeDecoder(vae)
    alone = torch.cat(list(decode_stream(decoder, latents, tiling)), dim=1)
    post: list[list[tuple[int, torch.Tensor]]] = [[], [], []]

    for rank in (1, 2):
        chunks = iter(post)

        def give(done: list[tuple[int, torch.Tensor]], *_: object, chunks: Any = chunks) -> None:
            next(chunks).extend(done)

        assert list(decode_stream(decoder, latents, tiling, Share(rank, 3, give))) == []
    assert [len(tiles) for tiles in post] == [6, 6, 6]  # of 9, for 1 + 2 + 1 latent frames

    def collect(
        done: list[tuple[int, torch.Tensor]], shapes: list[tuple[int, ...]], like: torch.Tensor
    ) -> list[torch.Tensor]:
        assert all(tile.shape == shapes[index] for index, tile in done)
        return [tile for _, tile in sorted(post.pop(0) + done, key=lambda pair: pair[0])]

    shared = decode_stream(decoder, latents, tiling, Share(0, 3, collect))
    assert torch.equal(torch.cat(list(shared), dim=1), alone)
