"""The spelling of a LoRA's tensors: layer, kind and program, for every spelling in use."""

from __future__ import annotations

import pytest

from lightx2v_sgmd.families.lora.keys import (
    is_lora_key,
    parameter_of,
    programs_of,
    spellings,
    taken_apart,
    unsupported_kind,
)

SHAPES: dict[str, tuple[int, ...]] = {
    "blocks.0.attn1.to_q.weight": (4, 4),
    "blocks.0.attn1.to_q.bias": (4,),
    "blocks.0.scale_shift_table": (1, 6, 4),
    "blocks.0.norm2.weight": (4,),
    "proj_out.weight": (4, 4),
    "scale_shift_table": (1, 2, 4),
}


@pytest.mark.parametrize(
    ("key", "kind", "program"),
    [
        ("transformer.blocks.0.attn1.to_q.lora_A.weight", "down", "diffusers"),
        ("base_model.model.blocks.0.attn1.to_q.lora_B.weight", "up", "PEFT"),
        ("base_model.model.blocks.0.attn1.to_q.lora_B.bias", "up_bias", "PEFT"),
        ("blocks.0.self_attn.q.lora_A.default.weight", "down", "DiffSynth-Studio"),
        ("diffusion_model.blocks.0.self_attn.q.lora_up.weight", "up", "ComfyUI or LightX2V"),
        ("blocks.0.self_attn.q.lora_down.weight", "down", "no prefix"),
        ("lora_unet_blocks_0_self_attn_q.alpha", "alpha", "kohya or musubi-tuner"),
        ("lora_transformer_blocks_0_attn1_to_q.lora_down.weight", "down", "OneTrainer"),
        ("transformer.blocks.0._orig_mod.attn1.to_q.lora.up.weight", "up", "diffusers"),
        ("lycoris_blocks_0_self_attn_q.lora_down.weight", "down", "LyCORIS"),
    ],
)
def test_a_key_is_its_layer_and_its_kind(key: str, kind: str, program: str) -> None:
    stored, found, _ = taken_apart(key)
    assert (spellings(SHAPES)[stored], found) == ("blocks.0.attn1.to_q", kind)
    assert is_lora_key(key) and programs_of([key]) == program


@pytest.mark.parametrize(
    ("key", "parameter"),
    [
        ("diffusion_model.blocks.0.self_attn.q.diff_b", "blocks.0.attn1.to_q.bias"),
        ("diffusion_model.blocks.0.self_attn.q.diff", "blocks.0.attn1.to_q.weight"),
        ("lora_unet_blocks_0_norm3.diff", "blocks.0.norm2.weight"),
        ("diffusion_model.blocks.0.diff_m", "blocks.0.scale_shift_table"),
        ("blocks.0.modulation.diff", "blocks.0.scale_shift_table"),
        ("diffusion_model.head.diff_m", "scale_shift_table"),
        ("diffusion_model.head.head.diff", "proj_out.weight"),
        ("diffusion_model.blocks.9.norm3.diff", None),
    ],
)
def test_a_difference_belongs_to_a_parameter(key: str, parameter: str | None) -> None:
    stored, kind, what = taken_apart(key)
    assert kind == "difference"
    assert parameter_of(stored, what, spellings(SHAPES), SHAPES) == parameter


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("diffusion_model.blocks.0.self_attn.q.dora_scale", "a DoRA file"),
        ("blocks.0.attn1.to_q.lora_magnitude_vector.default.weight", "a DoRA file"),
        ("lycoris_blocks_0_self_attn_q.lokr_w1", "a LoKr file"),
        ("lora_unet_blocks_0_self_attn_q.hada_w1_a", "a LoHa file"),
        ("blocks.0.attn1.to_q.oft_diag", "an OFT file"),
        ("blocks.0.attn1.to_q.ia3_l", "an IA3 file"),
        ("lora_unet_blocks_0_self_attn_q.lora_mid.weight", "a Tucker-decomposed LoRA (LoCon) file"),
        ("lora_te_text_model.alpha", "a LoRA with text encoder layers"),
    ],
)
def test_other_kinds_are_known_by_their_names(key: str, kind: str) -> None:
    assert unsupported_kind(["a.weight", key]) == (kind, key) and is_lora_key(key)


def test_weights_are_no_lora() -> None:
    for key in ("blocks.0.attn1.to_q.weight", "head.modulation", "diffusion_model.a.bias"):
        assert not is_lora_key(key) and unsupported_kind([key]) is None
        assert taken_apart(key) == (key, "", "")
