"""A lone network of another family is named, and what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightx2v_sgmd.families.inspection.inspecting import inspect_weights
from lightx2v_sgmd.families.inspection.other_networks import other_family


@pytest.mark.parametrize(
    ("names", "family", "layout"),
    [
        (
            ["transformer_blocks.0.norm1.linear.weight", "patch_embed.proj.weight"],
            "CogVideoX",
            "diffusers",
        ),
        (
            ["transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"],
            "SD3",
            "diffusers",
        ),
        (
            ["add_embedding.linear_1.weight", "down_blocks.1.attentions.0.proj_in.weight"],
            "SDXL",
            "diffusers",
        ),
        (["model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"], "SD3", "original"),
    ],
)
def test_a_lone_network_of_another_family_is_named(
    names: list[str], family: str, layout: str, tmp_path: Path
) -> None:
    save_file({name: torch.zeros(2, 3) for name in names}, tmp_path / "x.safetensors")
    found = inspect_weights(tmp_path / "x.safetensors").to_dict()
    assert found["kind"] == "network" and found["names"] == layout
    assert found["size"] == f"{6 * len(names)} weights ({family})"
    assert found["missing"][0].startswith(
        f"the model's other parts: {family} is read from a folder"
    )


def test_a_network_of_an_unknown_family_is_named_after_no_other() -> None:
    """FLUX has SD3's double blocks and its layer for the text, and no layer for positions."""
    names = ["transformer_blocks.0.attn.add_q_proj.weight", "context_embedder.weight"]
    assert other_family([*names, "single_transformer_blocks.0.proj_out.weight"]) is None
    assert other_family([*names, "pos_embed.proj.weight"]) == ("SD3", "diffusers")
