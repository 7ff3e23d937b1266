"""The formula of the decode's memory, held to a meter on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan

from distill.planning.metering import MemoryMeter, fused_attention
from infer.vae.decode_memory import decode_gib
from infer.vae.decoder import VaeDecoder
from infer.vae.decoding import Share, Tiling, decode_stream
from lightx2v_sgmd.families.wan.opening import open_wan

WAN21 = {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4]}
WAN22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


def metered_gib(
    config: dict[str, Any],
    size: tuple[int, int, int],
    frames_at_once: int,
    tiling: Tiling | None,
    share: Share | None,
) -> float:
    height, width, num_frames = size
    with torch.device("meta"):
        decoder = VaeDecoder(AutoencoderKLWan.from_config(config).eval())
        shape = ((num_frames - 1) // 4 + 1, height // decoder.ratio, width // decoder.ratio)
        latents = torch.empty(1, decoder.config.z_dim, *shape)
    meter = MemoryMeter()
    with fused_attention(), meter:
        for chunk in decode_stream(decoder, latents, tiling, share, frames_at_once):
            del chunk
    return meter.peak / 2**30


def config_of(name: str) -> dict[str, Any]:
    if name == "sprites":
        return open_wan("sprites").vae_config
    with torch.device("meta"):
        return dict(AutoencoderKLWan(**{"wan2.1": WAN21, "wan2.2": WAN22}[name]).config)


@pytest.mark.parametrize("name", ["wan2.1", "wan2.2", "sprites"])
@pytest.mark.parametrize(("frames_at_once", "tiled"), [(1, False), (2, False), (2, True)])
def test_the_formula_is_what_a_meter_sees(name: str, frames_at_once: int, tiled: bool) -> None:
    config, size = config_of(name), (240, 416, 13)
    tiling = Tiling(128, 96) if tiled else None
    got = decode_gib(config, size, 1, frames_at_once, tiling)
    metered = metered_gib(config, size, frames_at_once, tiling, None)
    assert 0.93 < got / metered < 1.25, (got, metered)


def test_a_process_that_shares_tiles_remembers_its_own() -> None:
    config, size, tiling = config_of("wan2.1"), (240, 416, 9), Tiling(128, 96)

    def others(
        own: list[tuple[int, torch.Tensor]], shapes: list[tuple[int, ...]], like: torch.Tensor
    ) -> list[torch.Tensor]:
        tiles = dict(own)
        return [
            tiles[index] if index in tiles else like.new_empty(shape)
            for index, shape in enumerate(shapes)
        ]

    metered = metered_gib(config, size, 2, tiling, Share(0, 2, others))
    assert 0.93 < decode_gib(config, size, 1, 2, tiling, ranks=2) / metered < 1.25


def test_small_videos_count_together() -> None:
    config = config_of("wan2.1")
    one, four, five = (decode_gib(config, (128, 128, 9), count) for count in (1, 4, 5))
    assert four == pytest.approx(4 * one) and five == four
    half = decode_gib(config, (128, 128, 9), bytes_each=2)
    assert half == pytest.approx(one / 2)
