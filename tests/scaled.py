"""Networks in 8 bits with scales, in each of the conventions in use."""

from __future__ import annotations

import json
from typing import Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.wan.keys import transformer_to_original

FP8 = torch.float8_e4m3fn
Tensors = dict[str, Tensor]

CONVENTIONS: Final[dict[str, tuple[str, bool, Tensors]]] = {
    "comfyui-legacy": (".scale_weight", False, {"scaled_fp8": torch.zeros(2).to(FP8)}),
    "comfyui": (".weight_scale", False, {}),
    "lightx2v": (".weight_scale", True, {}),
}
"""The end of a scale's name, True for a scale for each row, and markers in the file."""


def original(tensors: Tensors) -> Tensors:
    return {transformer_to_original(name): tensor for name, tensor in tensors.items()}


def quantised(tensors: Tensors, ending: str, per_row: bool, extra: Tensors) -> Tensors:
    """The matrices of blocks in 8 bits, with their scales."""
    stored = dict(extra)
    for name, tensor in original(tensors).items():
        layer = name.removesuffix(".weight")
        if not name.startswith("blocks.") or layer == name or tensor.ndim != 2:
            stored[name] = tensor
            continue
        largest = tensor.abs().amax(1, keepdim=True) if per_row else tensor.abs().max()
        stored[name], stored[layer + ending] = (tensor / (largest / 448)).to(FP8), largest / 448
        if ending == ".weight_scale" and not per_row:
            text = json.dumps({"format": "float8_e4m3fn"}).encode()
            stored[f"{layer}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
            stored[f"{layer}.input_scale"] = torch.tensor(2.0)
    return stored
