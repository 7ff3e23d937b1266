"""The decoder as a whole: its facts, and that it leaves the VAE as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from infer.vae.decoder import COMPILED_FROM, DecodeSettings, VaeDecoder
from infer.vae.layers import Caches
from lightx2v_sgmd.families.wan.opening import open_wan


@pytest.fixture(scope="module")
def vae(shared_student: Path) -> Any:
    return open_wan(shared_student).load_vae()


def test_frames_and_pixels_of_a_chunk(vae: Any) -> None:
    decoder = VaeDecoder(vae)
    assert decoder.frames(1, first=True) == 1 and decoder.frames(2, first=False) == 8
    z = torch.zeros(1, vae.config.z_dim, 3, 2, 3)
    caches: Caches = {}
    with torch.no_grad():
        first, next_two = decoder(z[:, :, :1], caches), decoder(z[:, :, 1:], caches)
    size = (2 * decoder.ratio // decoder.patch, 3 * decoder.ratio // decoder.patch)
    assert first.shape[2:] == (1, *size) and next_two.shape[2:] == (8, *size)


def test_its_weights_are_frozen_copies_or_the_vaes_own(vae: Any) -> None:
    before = {name: p.clone() for name, p in vae.named_parameters()}
    decoder = VaeDecoder(vae, DecodeSettings(channels_last=False))
    assert not any(p.requires_grad for p in decoder.parameters())
    assert decoder.conv_in.weight.data_ptr() == vae.decoder.conv_in.weight.data_ptr()
    last = VaeDecoder(vae)
    assert last.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(torch.equal(p, before[name]) for name, p in vae.named_parameters())


def test_small_frames_are_not_worth_compiling() -> None:
    assert 32 * 32 < COMPILED_FROM <= 480 * 832
