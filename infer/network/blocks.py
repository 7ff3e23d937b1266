"""Changes to the transformer's blocks, made to each one as soon as its weights are loaded.

So memory never holds the whole network twice, nor the whole of it in more bits than it is run in.
"""

from __future__ import annotations

from typing import Any, Final

import torch


def fuse_qkv(block: Any) -> None:
    """One matrix product for query, key and value, and one for key and value of the text.

    diffusers keeps the separate matrices beside the fused ones; here they go.
    """
    for attention, parts in (
        (block.attn1, ("to_q", "to_k", "to_v")),
        (block.attn2, ("to_k", "to_v")),
    ):
        attention.fuse_projections()
        for part in parts:
            delattr(attention, part)


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
    quantize_(block, config)
    if kind == "fp8":
        for weight in block.parameters():
            mend_rows_of_zeros(weight)


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
