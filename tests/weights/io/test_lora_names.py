"""The tensors and settings of a layer under each program's names, worked by hand."""

from __future__ import annotations

import pytest
import torch

from weights.io.lora_names import NAMES, LayerFactors, pairs_in, peft_config, renamed, settings_of

LAYER = "blocks.0.attn1.to_q"
SHAPES = {f"{LAYER}.weight": (3, 4), f"{LAYER}.bias": (3,), "proj_out.weight": (2, 4)}
Q = "diffusion_model.blocks.0.self_attn.q"
PORTABLE = {
    f"{Q}.lora_down.weight": torch.ones(2, 4),
    f"{Q}.lora_up.weight": torch.ones(3, 2),
    f"{Q}.alpha": torch.tensor(6.0),
    f"{Q}.diff_b": torch.full((3,), 9.0),
    "diffusion_model.head.head.lora_down.weight": torch.ones(1, 4),
    "diffusion_model.head.head.lora_up.weight": torch.ones(2, 1),
}


@pytest.fixture
def pairs() -> dict[str, LayerFactors]:
    return pairs_in(PORTABLE, SHAPES)


def test_pairs_are_the_layers(pairs: dict[str, LayerFactors]) -> None:
    assert list(pairs) == [LAYER, "proj_out"]
    assert (pairs[LAYER].scale, pairs[LAYER].rank) == (3, 2)
    assert (pairs["proj_out"].scale, pairs["proj_out"].bias) == (1, None)


@pytest.mark.parametrize(
    ("names", "up", "factor", "bias"),
    [
        ("diffusers", f"transformer.{LAYER}.lora_B", 3.0, 9.0),
        ("lightx2v_train", "transformer.blocks.0.self_attn.q.lora_B", 3.0, 9.0),
        # PEFT multiplies product and bias by alpha over the rank, which is 3.
        ("peft", f"base_model.model.{LAYER}.lora_B", 1.0, 3.0),
        ("musubi", "lora_unet_blocks_0_self_attn_q.lora_up", 1.0, None),
    ],
)
def test_scale_and_bias_stand_where_the_program_wants_them(
    pairs: dict[str, LayerFactors], names: str, up: str, factor: float, bias: float | None
) -> None:
    tensors = renamed(pairs, NAMES[names])
    assert torch.equal(tensors[f"{up}.weight"], torch.full((3, 2), factor))
    found = tensors.get(f"{up}.bias")
    if bias is None:
        assert found is None
    else:
        assert found is not None and torch.equal(found, torch.full((3,), bias))
    # Biases are those of all layers or of none.
    biases = [name for name in tensors if name.endswith(".bias")]
    assert len(biases) == (0 if bias is None else 2)
    alphas = {name: t.item() for name, t in tensors.items() if name.endswith(".alpha")}
    assert sorted(alphas.values()) == ([1, 6] if names == "musubi" else [])


def test_settings_state_what_differs_between_layers(pairs: dict[str, LayerFactors]) -> None:
    told = settings_of(pairs, NAMES["portable"])
    assert (told["r"], told["lora_alpha"]) == (2, 2)
    assert told["rank_pattern"] == told["alpha_pattern"] == {"proj_out": 1}
    assert told["lora_bias"] is True
    config = peft_config(pairs, "teacher")
    assert (config["lora_alpha"], config["alpha_pattern"]) == (6, {"proj_out": 1})
    original = settings_of(pairs, NAMES["lightx2v_train"])
    assert original["target_modules"] == ["blocks.0.self_attn.q", "head.head"]
