"""The key maps against every name of the published models and diffusers' own converters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from transformers import UMT5EncoderModel

from lightx2v_sgmd.families.sources.hub_configs import known_transformer_config
from lightx2v_sgmd.families.t5 import EMBEDDING_ALIASES
from lightx2v_sgmd.families.wan import keys as wan_keys
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.system.errors import UserError
from tests.families.names import (
    TEXT_ENCODER_NAMES,
    TRANSFORMER_NAMES,
    UMT5_XXL,
    VAE_NAMES,
)
from tests.tiny import make_tiny_wan

Rename = Callable[[str], str]


def meta_names(build: Callable[[], torch.nn.Module]) -> list[str]:
    with torch.device("meta"):
        return [name for name, _ in build().named_parameters()]


def transformer(size: str) -> torch.nn.Module:
    config = known_transformer_config(f"Wan-AI/Wan2.1-T2V-{size}-Diffusers")
    return WanTransformer3DModel.from_config(config)


def listed(names: dict[str, str], layers: int) -> dict[str, str]:
    """Names with one of ``{n}`` for each layer."""
    return {
        ours.format(n=n): theirs.format(n=n)
        for ours, theirs in names.items()
        for n in range(layers if "{n}" in ours else 1)
    }


@pytest.mark.parametrize(
    ("build", "names", "to_original", "to_diffusers"),
    [
        pytest.param(
            lambda: transformer("1.3B"),
            listed(TRANSFORMER_NAMES, 30),
            wan_keys.transformer_to_original,
            wan_keys.transformer_to_diffusers,
            id="1.3B",
        ),
        pytest.param(
            lambda: transformer("14B"),
            listed(TRANSFORMER_NAMES, 40),
            wan_keys.transformer_to_original,
            wan_keys.transformer_to_diffusers,
            id="14B",
        ),
        pytest.param(
            AutoencoderKLWan,
            VAE_NAMES,
            wan_keys.vae_to_original,
            wan_keys.vae_to_diffusers,
            id="vae",
        ),
        pytest.param(
            lambda: UMT5EncoderModel(UMT5_XXL),
            listed(TEXT_ENCODER_NAMES, 24),
            wan_keys.text_encoder_to_original,
            wan_keys.text_encoder_to_diffusers,
            id="umt5-xxl",
        ),
    ],
)
def test_every_name_of_the_published_models(
    build: Callable[[], torch.nn.Module],
    names: dict[str, str],
    to_original: Rename,
    to_diffusers: Rename,
) -> None:
    found = meta_names(build)
    assert sorted(found) == sorted(names)
    assert {name: to_original(name) for name in found} == names
    assert {to_diffusers(name) for name in names.values()} == set(found)
    assert len(set(names.values())) == len(names)


def test_diffusers_own_converters_agree() -> None:
    for names, convert in (
        (listed(TRANSFORMER_NAMES, 2), convert_wan_transformer_to_diffusers),
        (VAE_NAMES, convert_wan_vae_to_diffusers),
    ):
        converted = convert({theirs: ours for ours, theirs in names.items()})
        assert converted == {ours: ours for ours in names}


def test_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    model = open_wan(make_tiny_wan(tmp_path))
    res_blocks = model.vae_config["num_res_blocks"]
    encoder = model.load_text_encoder(torch.float32).network
    for network, to_original, to_diffusers in (
        (
            model.load_transformer(),
            wan_keys.transformer_to_original,
            wan_keys.transformer_to_diffusers,
        ),
        (
            model.load_vae(),
            lambda name: wan_keys.vae_to_original(name, res_blocks),
            lambda name: wan_keys.vae_to_diffusers(name, res_blocks),
        ),
        (encoder, wan_keys.text_encoder_to_original, wan_keys.text_encoder_to_diffusers),
    ):
        weights = dict(network.named_parameters())
        original = {to_original(name): tensor for name, tensor in weights.items()}
        assert len(original) == len(weights)
        back = {to_diffusers(name): tensor for name, tensor in original.items()}
        assert back.keys() == weights.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())


def test_the_embedding_has_two_names_in_transformers() -> None:
    names = (name for name in ("shared.weight", *EMBEDDING_ALIASES))
    assert {wan_keys.text_encoder_to_original(name) for name in names} == {"token_embedding.weight"}


@pytest.mark.parametrize(
    ("rename", "name"),
    [
        (wan_keys.transformer_to_original, "blocks.0.attn1.to_q.weight_scale"),
        (wan_keys.transformer_to_original, "blocks.00.attn1.to_q.weight"),
        (wan_keys.transformer_to_original, "blocks.0.norm3.weight"),
        (wan_keys.transformer_to_diffusers, "blocks.0.cross_attn.k_audio.weight"),
        (wan_keys.transformer_to_diffusers, "model.blocks.0.self_attn.q.weight"),
        (wan_keys.transformer_to_diffusers, "blocks.0.self_attn.q.weight\n"),
        (wan_keys.transformer_to_diffusers, "blocks.٣.self_attn.q.weight"),
        (wan_keys.vae_to_original, "decoder.up_blocks.0.resnets.3.conv1.weight"),
        (wan_keys.vae_to_original, "decoder.up_blocks.0.upsamplers.1.resample.1.weight"),
        (wan_keys.vae_to_diffusers, "decoder.upsamples.3.residual.2.weight"),
        (wan_keys.vae_to_diffusers, "encoder.middle.3.residual.2.weight"),
        (wan_keys.text_encoder_to_original, "decoder.block.0.layer.0.layer_norm.weight"),
        (wan_keys.text_encoder_to_diffusers, "pos_embedding.embedding.weight"),
    ],
)
def test_other_names_are_refused(rename: Rename, name: str) -> None:
    with pytest.raises(UserError, match="is not the name of a weight"):
        rename(name)
