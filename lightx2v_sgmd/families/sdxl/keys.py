"""The names of the U-Net's layers in the authors' release, which kohya's and other LoRAs have."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

_EMBEDDERS: Final = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_LAYER: Final = re.compile(
    r"(?:(?P<side>down|up)_blocks\.(?P<block>\d+)|mid_block)"
    r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<rest>.+)",
    re.ASCII,
)


def original_names(layers: Collection[str]) -> dict[str, str]:
    """The authors' names of a U-Net's layers, by diffusers' names; empty for other networks.

    How many ResNets a block has, and whether it has attention, decide how the authors number it.

    Args:
        layers: Diffusers' names of all layers, such as ``down_blocks.1.attentions.0.proj_in``.
    """
    matches = {layer: match for layer in layers if (match := _LAYER.fullmatch(layer))}
    resnets = [match for match in matches.values() if match["kind"] == "resnets"]
    per_block = {
        side: len({m["index"] for m in resnets if (m["side"], m["block"]) == (side, "0")})
        for side in ("down", "up")
    }
    attending = {(m["side"], m["block"]) for m in matches.values() if m["kind"] == "attentions"}
    names = {layer: _in_block(match, per_block, attending) for layer, match in matches.items()}
    if names:
        names |= {layer: _EMBEDDERS[layer] for layer in layers if layer in _EMBEDDERS}
    return names


def _in_block(
    match: re.Match[str], per_block: Mapping[str, int], attending: Collection[tuple[str, str]]
) -> str:
    """The name of a layer that is in a block."""
    side, kind, number = match["side"], match["kind"], int(match["index"])
    rest = _RESNET.get(match["rest"], match["rest"])
    within = 1 if kind == "attentions" else 0
    if side is None:  # a ResNet, attention, a ResNet
        return f"middle_block.{within or 2 * number}.{rest}"
    block, count = int(match["block"]), per_block[side]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (count + 1)}.0.op"
    if kind == "upsamplers":  # the last part of the block's last ResNet
        within = 2 if (side, match["block"]) in attending else 1
        return f"output_blocks.{(block + 1) * count - 1}.{within}.conv"
    if side == "down":  # conv_in comes first, and each block ends with its downsampler
        return f"input_blocks.{1 + block * (count + 1) + number}.{within}.{rest}"
    return f"output_blocks.{block * count + number}.{within}.{rest}"
