"""Weights stored in 8 bits with scales, in each of the conventions in use.

A weight ``X.weight`` counts ``stored * scale``. Programs name the scale ``X.weight_scale``
(LightX2V: one for each output channel; ComfyUI: one for the matrix) or ``X.scale_weight`` (ComfyUI
before December 2025). Beside them lie markers (``scaled_fp8``, ``X.comfy_quant``) and scales of the
layer's input, which only a program that multiplies in 8 bits uses. 8-bit floats without a scale
are their own values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Final

import torch
from torch import Tensor

from lightx2v_sgmd.files.tensors.safetensors_files import TensorInfo
from lightx2v_sgmd.system.errors import UserError, shortened

EIGHT_BIT_FLOATS: Final = ("F8_E4M3", "F8_E5M2")
_LARGEST: Final = 448.0
WEIGHT: Final = ".weight"
SCALES: Final = (".weight_scale", ".scale_weight")
_UNUSED: Final = (".scale_input", ".input_scale", ".comfy_quant")
_MARKER: Final = "scaled_fp8"
_BLOCK_SCALES: Final = (".weight_scale_inv", ".weight_scale_2")
_DECODED: Final = "F32"


@dataclass(frozen=True)
class ScaledWeights:
    """The tensors of a file, with weights and their scales told apart.

    Attributes:
        tensors: Everything but scales and markers, as stored.
        scales: The name of each scaled weight's scale.
    """

    tensors: Mapping[str, TensorInfo]
    scales: Mapping[str, str]

    @classmethod
    def of(cls, stored: Mapping[str, TensorInfo]) -> ScaledWeights:
        """Tells weights, scales and markers apart.

        Raises:
            UserError: weights are stored in 4 bits, or their scales belong to blocks of a matrix.
        """
        tensors = dict(stored)
        scales = {}
        for name, info in stored.items():
            layer = name.removesuffix(WEIGHT)
            if layer == name:
                if name.rsplit(".", 1)[-1] == _MARKER:
                    del tensors[name]
                continue
            for suffix in (*SCALES, *_BLOCK_SCALES):
                scale = stored.get(layer + suffix)
                if scale is not None and len(info.shape) == 2:
                    _check(name, info, scale, suffix)
                    scales[name] = layer + suffix
                    del tensors[layer + suffix]
            for suffix in _UNUSED:
                tensors.pop(layer + suffix, None)
        return cls(tensors, scales)

    def is_decoded(self, name: str) -> bool:
        """True if a weight is read as something else than what is stored."""
        return name in self.scales or self.tensors[name].dtype in EIGHT_BIT_FLOATS

    def info(self, name: str) -> TensorInfo:
        """A tensor as it is read: decoded weights are float32."""
        info = self.tensors[name]
        return replace(info, dtype=_DECODED, start=None) if self.is_decoded(name) else info

    @property
    def convention(self) -> str | None:
        """The storage of matrices in 8 bits, in words; None if nothing is in 8 bits."""
        eight = [name for name, info in self.tensors.items() if info.dtype in EIGHT_BIT_FLOATS]
        if not eight and not self.scales:
            return None
        if not self.scales:
            return f"{len(eight)} matrices in fp8 without scales"
        names = sorted({"." + scale.rsplit(".", 1)[-1] for scale in self.scales.values()})
        return f"{len(self.scales)} matrices in 8 bits with scales ({', '.join(names)})"


def in_fp8(weight: Tensor, by_row: bool) -> tuple[Tensor, Tensor]:
    """Rounds a matrix to 8 bits: ``weight = stored * scale``, symmetric, ``float8_e4m3fn``.

    Args:
        weight: ``[out, in]``.
        by_row: True for a scale of each row, False for one of the whole matrix.

    Returns:
        The stored matrix, and its scale in float32, ``[out, 1]`` or ``[]``: the largest magnitude
        over 448, the largest finite value of the type.
    """
    wide = weight.float()
    low, high = wide.aminmax(dim=1, keepdim=True) if by_row else wide.aminmax()
    largest = torch.maximum(-low, high)
    scale = (largest / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    # A value that rounding puts just above 448 is clamped: 448 is the nearest number in fp8.
    return (wide / scale).to(torch.float8_e4m3fn), scale


def decoded(values: Tensor, scale: Tensor, start: int, width: int) -> Tensor:
    """Elements of a flattened matrix, float32.

    Args:
        values: The stored elements from ``start`` on.
        scale: One for the matrix, or one for each row.
        start: Index of the first element.
        width: Elements of a row.
    """
    wide, scale = values.float(), scale.flatten().float()
    if scale.numel() == 1:
        return wide * scale
    rows = torch.arange(start, start + len(wide)) // width
    return wide * scale[rows]


def _check(name: str, info: TensorInfo, scale: TensorInfo, suffix: str) -> None:
    rows = info.shape[0]
    if info.dtype == "U8" or suffix in _BLOCK_SCALES or prod(scale.shape) not in (1, rows):
        raise UserError(
            f"{info.file}: {shortened(name)} is stored as {info.dtype} {list(info.shape)} with "
            f"scales {list(scale.shape)}, a quantisation that is not read (4 bits, or scales of "
            "blocks); give bf16, fp16, fp32 or fp8 weights with one scale a matrix or a row"
        )
