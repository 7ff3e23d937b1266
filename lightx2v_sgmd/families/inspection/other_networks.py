"""Networks of other families than Wan's that come without the folder that they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Final

from lightx2v_sgmd.families.inspection.facts import Inspection, types_text
from lightx2v_sgmd.files.tensors.safetensors_files import Header

# Layers that the networks of no other family have: in diffusers' names, then in the authors' own.
_FAMILIES: Final = (
    ("CogVideoX", "diffusers", ("transformer_blocks.0.norm1.linear.weight", "patch_embed.proj")),
    ("CogVideoX", "original", ("transformer.layers.0.attention.query_key_value",)),
    ("SD3", "diffusers", ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.")),
    ("SD3", "original", ("joint_blocks.0.context_block.",)),
    ("SDXL", "diffusers", ("add_embedding.linear_1.weight", "down_blocks.1.attentions.0.")),
    ("SDXL", "original", ("label_emb.0.0.weight", "input_blocks.4.1.transformer_blocks.")),
)


def other_family(names: Iterable[str]) -> tuple[str, str] | None:
    """The family and the naming of a network that is not Wan's; None if it is none of them."""
    found = list(names)
    for family, layout, marks in _FAMILIES:
        if all(any(mark in name for name in found) for mark in marks):
            return family, layout
    return None


def lone_network(path: Path, header: Header, family: str, layout: str) -> Inspection:
    """A network of another family without the folder that it belongs to."""
    count = sum(prod(info.shape) for info in header.tensors.values())
    size = f"{count:,} weights ({family})"
    facts = {"names": layout, "size": size, "types": types_text(header)}
    found = Inspection(path, "network", facts)
    found.missing.append(
        f"the model's other parts: {family} is read from a folder in diffusers' layout, with its "
        "model_index.json"
    )
    return found
