"""The authors' names of the U-Net's layers, against diffusers' own converter."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from lightx2v_sgmd.families.lora.keys import spellings, without_prefixes
from lightx2v_sgmd.families.sdxl.keys import original_names
from lightx2v_sgmd.families.sdxl.opening import open_sdxl


def test_every_name_is_the_one_that_diffusers_converts() -> None:
    model = open_sdxl("stabilityai/stable-diffusion-xl-base-1.0")
    with torch.device("meta"):
        network = model.build_transformer()
    weights = dict(network.named_parameters())
    names = original_names({name.rpartition(".")[0] for name in weights})
    original = {
        f"model.diffusion_model.{names[layer]}.{kind}": weights[f"{layer}.{kind}"]
        for layer, _, kind in (name.rpartition(".") for name in weights)
    }
    settings: dict[str, Any] = {**network.config, "class_embed_type": None}
    converted = convert_ldm_unet_checkpoint(dict(original), settings)
    assert converted.keys() == weights.keys()
    assert all(converted[name] is weight for name, weight in weights.items())


def test_kohyas_names_are_found() -> None:
    shapes = {
        "conv_in.weight": (4, 4, 3, 3),
        "down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3),
        "down_blocks.0.resnets.1.conv1.weight": (4, 4, 3, 3),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight": (4, 4),
    }
    known = spellings(shapes)
    stored = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert known[without_prefixes(stored)] == layer
    assert known[without_prefixes(f"unet.{layer}")] == layer
    assert known["input_blocks.0.0"] == "conv_in"


def test_other_networks_have_no_such_names() -> None:
    assert original_names({"blocks.0.attn1.to_q", "conv_in", "conv_out"}) == {}
