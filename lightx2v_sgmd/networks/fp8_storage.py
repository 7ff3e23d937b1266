"""Frozen weights stored in 8 bits: each matrix is scaled back while its layer computes.

A frozen network takes half the memory of bfloat16, and gradients pass through it to adapters and
inputs. Nothing is computed in 8 bits: the products are those of the rounded weights, in the
precision of their inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightx2v_sgmd.files.tensors.scaled_weights import in_fp8


class Fp8Linear(nn.Linear):
    """A frozen linear layer that stores its matrix in fp8, with a float32 scale for each row.

    Args:
        layer: The layer whose values it takes; it is not changed.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        stored, scale = in_fp8(layer.weight.detach(), by_row=True)
        self.weight = nn.Parameter(stored, requires_grad=False)
        # A parameter, so that copies of the network share it as they share the matrix.
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., in]`` to ``[..., out]``, in the input's precision or in autocast's."""
        kind, dtype = x.device.type, x.dtype
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        output: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x.to(dtype), self.weight, self.scale, self.bias
        )
        return output


class _Product(torch.autograd.Function):
    """``x @ (weight * scale).T + bias`` that keeps the matrix in 8 bits for its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        bias = None if bias is None else bias.to(x.dtype)
        return F.linear(x, _scaled_back(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        weight, scale = ctx.saved_tensors
        return gradient @ _scaled_back(weight, scale, gradient.dtype), None, None, None


def _scaled_back(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    # bfloat16 and float16 have every fp8 number; the scale and its product are rounded.
    return weight.to(dtype).mul_(scale.to(dtype))


def store_in_fp8(block: nn.Module) -> None:
    """Stores the matrices of a block's linear layers in fp8, in place.

    Norms, modulation and biases stay as they are.

    Args:
        block: A transformer block with its weights, none of which is trained.
    """
    layers = [
        (parent, name, layer)
        for parent in block.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]
    for parent, name, layer in layers:
        setattr(parent, name, Fp8Linear(layer))
