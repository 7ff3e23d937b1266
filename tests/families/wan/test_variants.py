"""Variants of Wan's network are known by the names of their layers."""

from pathlib import Path

import pytest

from lightx2v_sgmd.families.wan.variants import refuse_variant, variant_of
from lightx2v_sgmd.files.tensors.safetensors_files import Header, TensorInfo
from lightx2v_sgmd.system.errors import UserError

INFO = TensorInfo("F32", (2, 2), Path("x.safetensors"))
PLAIN = {"blocks.0.attn1.to_q.weight": (2, 2)}
FROM_IMAGE = {**PLAIN, "blocks.0.attn2.add_k_proj.weight": (2, 2)}


def header_of(*names: str) -> Header:
    return Header(dict.fromkeys(names, INFO), {})


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("blocks.0.cross_attn.k_img.weight", "an image-to-video model"),
        ("lora_unet_blocks_0_cross_attn_k_img", "an image-to-video model"),
        ("blocks.0.to_gate_compress.weight", "video sparse attention"),
        ("vace_blocks.0.proj.weight", "a VACE model"),
        ("model._register_tokens", "a discriminator with GAN heads"),
        ("double_blocks.0.weight", "another architecture"),
    ],
)
def test_a_layer_tells_the_variant(name: str, variant: str) -> None:
    assert variant in (variant_of(["blocks.0.unknown", name]) or "")


def test_other_names_tell_nothing() -> None:
    assert variant_of(["blocks.0.ffn.0.weight", "imgx"]) is None
    refuse_variant(header_of(*PLAIN), PLAIN, "x.safetensors")


@pytest.mark.parametrize(
    ("names", "expected", "problem"),
    [
        (FROM_IMAGE, PLAIN, "its configuration describes a text-to-video model"),
        (PLAIN, FROM_IMAGE, "without the layers of an image-to-video model"),
        ({**PLAIN, "vace_blocks.0.w": ()}, PLAIN, "a VACE model, such as vace_blocks.0.w; use"),
    ],
)
def test_weights_and_configuration_must_be_of_one_variant(
    names: dict[str, object], expected: dict[str, tuple[int, ...]], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        refuse_variant(header_of(*names), expected, "x.safetensors")
