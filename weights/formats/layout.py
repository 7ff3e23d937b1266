"""The names and types under which a program stores a network, and which weights have 8 bits.

A layout turns each of the network's weights into what is stored of it, and back. Export, read-back
and re-export use the same two functions, so none of them can drift from the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightx2v_sgmd.files.tensors.safetensors_writer import Part
from lightx2v_sgmd.system.errors import UserError
from weights.io.quantize import FP8, Scales, dequantize, is_quantized
from weights.io.tensors import Tensors


@dataclass(frozen=True)
class Layout:
    """A program's layout at one precision.

    Attributes:
        stored_name: A function from diffusers' name of a weight to the program's.
        stored_dtype: The type in which a weight is stored, unless it is quantized.
        scales: The scaling of 8-bit matrices, None if there are none.
        markers: Tensors of fixed content that the program looks for, by name.
    """

    stored_name: Callable[[str], str]
    stored_dtype: Callable[[str], torch.dtype]
    scales: Scales | None = None
    markers: Mapping[str, Tensor] = field(default_factory=dict)

    def parts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        """The tensors that are stored for a weight."""
        stored = self.stored_name(name)
        if self.scales is None or not is_quantized(name):
            return [Part(stored, self.stored_dtype(name), shape)]
        scale = Part(self._scale_name(stored), torch.float32, self.scales.shape(shape))
        extra = self.scales.extra(_layer(stored)).items()
        more = [Part(n, content.dtype, tuple(content.shape)) for n, content in extra]
        return [Part(stored, FP8, shape), scale, *more]

    def all_parts(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Part]:
        """The tensors that are stored for a network, in its order; markers last."""
        parts = [part for name, shape in shapes.items() for part in self.parts(name, shape)]
        marked = [Part(n, t.dtype, tuple(t.shape)) for n, t in self.markers.items()]
        return [*parts, *marked]

    def encode(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The content of ``parts``."""
        stored = self.stored_name(name)
        if self.scales is None or not is_quantized(name):
            return {stored: tensor.to(self.stored_dtype(name))}
        quantized, scale = self.scales.quantize(tensor)
        extra = self.scales.extra(_layer(stored))
        return {stored: quantized, self._scale_name(stored): scale, **extra}

    def decode(self, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight that a program computes with, from the content of ``parts``."""
        stored = self.stored_name(name)
        if self.scales is None or not is_quantized(name):
            return parts[stored]
        whole = dequantize(parts[stored], parts[self._scale_name(stored)])
        return whole.to(self.stored_dtype(name))

    def _scale_name(self, stored: str) -> str:
        assert self.scales is not None, stored
        return _layer(stored) + self.scales.suffix

    def metadata(self, names: Iterable[str]) -> dict[str, str]:
        """The headers' entries about quantized layers, for programs that look there.

        Args:
            names: The network's weights, by diffusers' name.
        """
        if self.scales is None or not self.scales.layer_settings:
            return {}
        settings = dict(self.scales.layer_settings)
        layers = [_layer(self.stored_name(name)) for name in names if is_quantized(name)]
        content = {"format_version": "1.0", "layers": dict.fromkeys(layers, settings)}
        return {"_quantization_metadata": json.dumps(content)}


def _layer(stored: str) -> str:
    return stored.removesuffix(".weight")


def read_finite(tensors: Tensors, name: str) -> Tensor:
    """One weight of a source.

    Raises:
        UserError: a value is not finite.
    """
    tensor = tensors.read(name)
    if tensor.numel() and not _finite(tensor):
        raise UserError(
            f"{tensors.where(name)}: {name} has values that are not finite: the run diverged; "
            "export an earlier checkpoint"
        )
    return tensor


def stored_finite(tensor: Tensor, name: str, where: str, dtype: str) -> Tensor:
    """A tensor of adapters as it is stored, if every value is finite.

    Args:
        tensor: The tensor, in the precision of the file.
        name: Name of the weight that it changes.
        where: The file that it was made of, for the message.
        dtype: Name of the precision, for the message.

    Raises:
        UserError: a value is not finite.
    """
    if not tensor.isfinite().all():
        raise UserError(
            f"{where}: {name} has values that are not finite in {dtype}: the run diverged, or fp16 "
            "is too narrow; export an earlier checkpoint, or use bf16"
        )
    return tensor


def _finite(tensor: Tensor) -> bool:
    """True if every value is finite; testing the extremes is several times faster than all."""
    values = tensor if tensor.dtype.itemsize > 1 else tensor.float()
    return all(extreme.isfinite().item() for extreme in values.aminmax())


def encoded(layout: Layout, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The tensors that a layout stores for a weight.

    Raises:
        UserError: a value is too large for fp16.
    """
    parts = layout.encode(name, tensor)
    for part in parts.values():
        if part.dtype == torch.float16 and not part.isfinite().all():
            raise UserError(f"dtype: {name} has values beyond fp16's range; use bf16 or fp32")
    return parts
