"""A lone network of another family is named, and what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightx2v_sgmd.families.inspection.inspecting import inspect_weights


@pytest.mark.parametrize(
    ("names", "family", "layout"),
    [
        (
            ["transformer_blocks.0.norm1.linear.weight", "patch_embed.proj.weight"],
            "CogVideoX",
            "diffusers",
        ),
        (
            ["transformer_blocks.0.attn.add_q_proj.weight", "context_embedder.weight"],
            "SD3",
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
