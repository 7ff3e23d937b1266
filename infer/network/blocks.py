"""Changes to the transformer's blocks, made to each one as soon as its weights are loaded.

So memory never holds the whole network twice, nor the whole of it in more bits than it is run in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch


def fuse_qkv(block: Any) -> None:
    """One matrix product for query, key and value, and one for key and value of text and image.

    diffusers' ``fuse_projections`` keeps the separate matrices beside the fused ones; here they go.
    """
    _fuse(block.attn1, ("to_q", "to_k", "to_v"), "to_qkv")
    _fuse(block.attn2, ("to_k", "to_v"), "to_kv")
    if block.attn2.add_k_proj is not None:
        _fuse(block.attn2, ("add_k_proj", "add_v_proj"), "to_added_kv")
        block.attn2.add_k_proj = torch.nn.Identity()  # it says that the layer attends to an image


def _fuse(attention: Any, parts: tuple[str, ...], name: str) -> None:
    """Replaces layers of an attention by one with their outputs side by side."""
    layers = [getattr(attention, part) for part in parts]
    for part in parts:
        delattr(attention, part)
    fused = layers[0]  # a new one would take memory before it gets its weights
    fused.weight = torch.nn.Parameter(torch.cat([layer.weight.data for layer in layers]), False)
    fused.bias = torch.nn.Parameter(torch.cat([layer.bias.data for layer in layers]), False)
    fused.out_features = len(fused.weight)
    setattr(attention, name, fused)
    attention.fused_projections = True


def quantize(block: Any, kind: str) -> None:
    """Quantises a block's matrices with torchao, on the device that they are on.

    ``fp8``: weights and, as they come, activations, one scale per row. ``int8``: weights only, one
    scale per row. Rows of zeros, of weights or of activations, stay zeros.
    """
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
        quantize_,
    )

    if kind == "fp8":
        config: Any = Float8DynamicActivationFloat8WeightConfig(
            granularity=PerRow(), set_inductor_config=False, activation_value_lb=_SMALLEST
        )
    else:
        config = Int8WeightOnlyConfig(set_inductor_config=False)
    for layer in [each for each in block.modules() if isinstance(each, torch.nn.Linear)]:
        if not _quantize_by_rows(layer, lambda part: quantize_(part, config)):
            quantize_(torch.nn.Sequential(layer), config)
    if kind == "fp8":
        for weight in block.parameters():
            mend_rows_of_zeros(weight)


_PIECES: Final = 8
_LARGE: Final = 2**20
"""Numbers of a matrix from which on it is quantised in pieces."""
_ROWS_MULTIPLE: Final = 16
"""torchao quantises to fp8 only where the numbers of rows and columns are divisible by it."""


def _quantize_by_rows(layer: torch.nn.Linear, quantize_part: Callable[[Any], Any]) -> bool:
    """Quantises a large matrix in pieces: torchao makes float32 copies of what it gets.

    Each row has its own scale, so the result is the same. Small matrices, and those that torchao
    keeps in another form than numbers and scales, are left as they are: it is False then.
    """
    weight = layer.weight
    count = -(-len(weight) // (_PIECES * _ROWS_MULTIPLE)) * _ROWS_MULTIPLE
    if len(weight) % _ROWS_MULTIPLE or weight.numel() < _LARGE:
        return False
    wholes: dict[str, torch.Tensor] = {}
    about: Any = None
    for start in range(0, len(weight), count):
        part = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
        rows = weight.data[start : start + count]
        part[0].weight = torch.nn.Parameter(rows, requires_grad=False)
        quantize_part(part)
        piece: Any = part[0].weight.data
        del part[0].weight  # torchao's layers refer to themselves, and would keep it
        if not hasattr(piece, "__tensor_flatten__"):
            return False
        names, about = piece.__tensor_flatten__()
        for name in names:
            own = getattr(piece, name)
            if type(own) is not torch.Tensor or own.shape[:1] != rows.shape[:1]:
                return False
            if not start:
                wholes[name] = own.new_empty((len(weight), *own.shape[1:]))
            wholes[name][start : start + count].copy_(own)
    shape, stride = weight.shape, weight.stride()
    joined = type(piece).__tensor_unflatten__(wholes, about, shape, stride)
    layer.weight = torch.nn.Parameter(joined, requires_grad=False)
    return True


_SMALLEST: Final = 1e-12
"""The least that the largest number of a row counts as: torchao divides by it."""


def mend_rows_of_zeros(weight: Any) -> None:
    """Makes rows of zeros zeros again in a weight that torchao quantised.

    It gives such a row the scale 0, and 0 / 0 as its numbers. Other weights are left alone.
    """
    if hasattr(weight, "qdata") and hasattr(weight, "scale"):
        empty = weight.scale == 0
        weight.qdata.view(torch.uint8).masked_fill_(empty, 0)
        weight.scale.masked_fill_(empty, 1.0)


def store_in_fp8(block: Any, compute_dtype: torch.dtype, skipped: tuple[str, ...]) -> None:
    """Stores a block's matrices in fp8 and casts each layer back while it computes.

    Args:
        block: The block.
        compute_dtype: The precision in which it computes.
        skipped: Patterns of the layers that stay as they are, as the network's class names them in
            ``_skip_layerwise_casting_patterns``.
    """
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(
        block,
        storage_dtype=torch.float8_e4m3fn,
        compute_dtype=compute_dtype,
        skip_modules_pattern=skipped,
    )
