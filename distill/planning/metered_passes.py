"""Stand-ins for a network's compiled passes, for metering memory on the meta device.

A compiled pass keeps its inputs, or what is as large, and computes the rest again in its backward
pass; it holds nothing meanwhile. The interface is that of
``lightx2v_sgmd.networks.compiled_passes.Passes``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# B batch, S tokens, N heads, D head size, W = N * D width


class MeteredPasses:
    """Passes that allocate what compiled ones do, and compute nothing."""

    def modulate(self, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Any:
        """Keeps ``x``."""
        return _OnePass.apply((x, scale), 1, x, scale, shift)  # type: ignore[no-untyped-call]

    def gate(self, x: Tensor, change: Tensor, gate: Tensor) -> Any:
        """Keeps ``change``."""
        return _OnePass.apply((change, gate), 1, x, change, gate)  # type: ignore[no-untyped-call]

    def add_and_modulate(
        self, x: Tensor, change: Tensor, scale: Tensor, shift: Tensor, eps: float
    ) -> Any:
        """Keeps the sum."""
        return _OnePass.apply((scale,), 2, x, change, scale, shift)  # type: ignore[no-untyped-call]

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        """Keeps ``x``."""
        return _OnePass.apply((x, weight), 1, x, weight, bias)  # type: ignore[no-untyped-call]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float | None) -> Any:
        """Keeps ``x``."""
        return _OnePass.apply((x, weight), 1, x, weight)  # type: ignore[no-untyped-call]

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        """Keeps the tables."""
        return _OnePass.apply((cos, sin), 1, x, cos, sin)  # type: ignore[no-untyped-call]


class _OnePass(torch.autograd.Function):
    """An output like the first input, or two of which the first is kept."""

    @staticmethod
    def forward(ctx: Any, kept: tuple[Tensor, ...], outputs: int, *inputs: Tensor) -> Any:
        made = tuple(torch.empty_like(inputs[0]) for _ in range(outputs))
        ctx.save_for_backward(*kept, *made[: outputs - 1])
        ctx.like = [(x.shape, x.dtype, x.device) for x in inputs]
        return made if outputs > 1 else made[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        made = [
            torch.empty(shape, dtype=dtype, device=device) if needed else None
            for (shape, dtype, device), needed in zip(
                ctx.like, ctx.needs_input_grad[2:], strict=True
            )
        ]
        return None, None, *made
