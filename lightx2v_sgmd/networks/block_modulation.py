"""Modulation of a Wan block by time: the shifts, scales and gates that its passes use."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# B batch, S tokens, W width


def block_modulation(block: Any, temb: Tensor) -> tuple[Tensor, ...]:
    """The shift, scale and gate of self-attention, then those of the feed-forward network.

    Args:
        block: A ``WanTransformerBlock``.
        temb: The embedded time, ``[B, 6, W]``, or ``[B, S, 6, W]`` where every token has its own.

    Returns:
        Six tensors ``[B, 1 or S, W]``, float32 in every precision of the block.
    """
    table, times = block.scale_shift_table, temb.float()
    changes: Tensor = (table + times)[:, None] if temb.ndim == 3 else table[None] + times
    return changes.unbind(-2)
