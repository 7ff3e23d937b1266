"""8-bit floats with scales, for the layers that bear them: attention and feed-forward matrices.

Symmetric ``float8_e4m3fn``: ``weight = stored * scale``, the scale being the largest magnitude over
448, of an output channel (LightX2V) or of the whole matrix (ComfyUI). Embeddings, time layers,
norms, modulation, biases and the head stay in bf16: they are small, and errors in them reach every
token.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from lightx2v_sgmd.files.tensors.scaled_weights import in_fp8

FP8: Final = torch.float8_e4m3fn
SETTINGS: Final = ".comfy_quant"

_BLOCK: Final = 2**16
_MATRICES: Final = re.compile(
    r"blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ffn\.net\.(0\.proj|2))\.weight"
)


def is_8_bit(dtype: str) -> bool:
    """True if a value of ``--dtype`` stores matrices in 8 bits."""
    return dtype.startswith("fp8")


def is_quantized(name: str) -> bool:
    """True if fp8 exports store this weight (diffusers' name) in 8 bits."""
    return _MATRICES.fullmatch(name) is not None


@dataclass(frozen=True)
class Scales:
    """The form in which a program reads scales.

    Attributes:
        suffix: The end of a scale's name, after the layer's name.
        per_channel: One for each output channel, ``[out, 1]``, or one for the matrix, ``[]``.
        layer_settings: The settings that the program wants of each quantized layer; it is stored as
            JSON text in a tensor of bytes beside the scale. Empty if it wants nothing.
    """

    suffix: str
    per_channel: bool
    layer_settings: Mapping[str, str | bool] = field(default_factory=dict)

    def extra(self, layer: str) -> dict[str, Tensor]:
        """Tensors of fixed content beside a quantized weight, by name."""
        if not self.layer_settings:
            return {}
        text = json.dumps(dict(self.layer_settings)).encode()
        content = torch.tensor(list(text), dtype=torch.uint8)
        return {layer + SETTINGS: content}

    def shape(self, weight: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a weight's scale."""
        return (weight[0], 1) if self.per_channel else ()

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A matrix ``[out, in]`` in 8 bits, and its scale, float32."""
        return in_fp8(weight, by_row=self.per_channel)


def dequantize(stored: Tensor, scale: Tensor) -> Tensor:
    """The weight that a program computes with, float32."""
    return stored.float() * scale


LIGHTX2V: Final = Scales(".weight_scale", per_channel=True)
# ComfyUI scales the weights back and multiplies at full precision.
COMFYUI: Final = Scales(
    ".weight_scale",
    per_channel=False,
    layer_settings={"format": "float8_e4m3fn", "full_precision_matrix_mult": True},
)
COMFYUI_LEGACY: Final = Scales(".scale_weight", per_channel=False)
"""The form that ComfyUI before December 2025 reads; newer versions convert it."""


def norm(tensor: Tensor) -> float:
    """The Frobenius norm, float32 in blocks that are added up in float64."""
    blocks = torch.split(tensor.float().flatten(), _BLOCK)
    return math.sqrt(sum(torch.dot(block, block).item() for block in blocks))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """``|got - expected| / |expected|``, Frobenius norms; 0 where both are zero."""
    off, size = norm(got.float() - expected.float()), norm(expected)
    return off / size if size else (0.0 if off == 0 else float("inf"))
