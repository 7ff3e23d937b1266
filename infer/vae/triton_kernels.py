"""The operations between the convolutions of Wan's VAE as Triton kernels, for channels-last memory.

A kernel is built in a fraction of a second, once per number of channels, precision and choice of
bias, where ``torch.compile`` would trace and build each of them for every layout that it meets.

B batch, N = T * H * W positions, C channels.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from infer.vae.kernels import EAGER, EPS

_NUMBERS_AT_ONCE: Final = 4096
"""Numbers that one instance of a kernel reads of a tensor: 32 for each of 128 threads."""


@triton.jit  # type: ignore[untyped-decorator]
def _norm_silu(
    x: tl.tensor,
    gamma: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    positions: tl.tensor,
    x_stride: tl.tensor,
    out_stride: tl.tensor,
    eps: tl.constexpr,
    channels: tl.constexpr,
    with_bias: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    video = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, width)
    inside = (row < positions)[:, None] & (column < channels)[None, :]
    places = row[:, None] * channels + column[None, :]
    values = tl.load(x + video * x_stride + places, mask=inside, other=0.0).to(tl.float32)
    if with_bias:
        added = tl.load(bias + column, mask=column < channels, other=0.0).to(tl.float32)
        values += added[None, :]
    length = tl.maximum(tl.sqrt(tl.sum(values * values, axis=1)), eps)
    weight = tl.load(gamma + column, mask=column < channels, other=0.0).to(tl.float32)
    values = values / length[:, None] * weight[None, :]
    values = values / (1.0 + tl.exp(-values))
    tl.store(out + video * out_stride + places, values.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _add(
    x: tl.tensor,
    y: tl.tensor,
    bias: tl.tensor,
    positions: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    channels: tl.constexpr,
    with_bias: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    video = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, width)
    inside = (row < positions)[:, None] & (column < channels)[None, :]
    places = row[:, None] * channels + column[None, :]
    here = x + video * x_stride + places
    values = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(y + video * y_stride + places, mask=inside, other=0.0).to(tl.float32)
    if with_bias:
        added = tl.load(bias + column, mask=column < channels, other=0.0).to(tl.float32)
        values += added[None, :]
    tl.store(here, values.to(x.dtype.element_ty), mask=inside)


def norm_silu(x: Tensor, gamma: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """Writes ``silu(gamma * x / |x|)`` to ``out``; arguments as of ``kernels.norm``."""
    if not (_channels_last(x) and _channels_last(out)):
        EAGER.norm_silu(x, gamma, out, bias)
        return
    grid, shape = _launch(x)
    with torch.cuda.device(x.device):
        _norm_silu[grid](
            *(x, gamma, gamma if bias is None else bias, out),
            *(x.shape[1], x.stride(0), out.stride(0)),
            eps=EPS,
            with_bias=bias is not None,
            **shape,
        )


def add(x: Tensor, y: Tensor, bias: Tensor | None = None) -> None:
    """Adds ``y`` and a bias ``[C]`` to ``x`` in place; all of them ``[B, N, C]``."""
    if not (_channels_last(x) and _channels_last(y)):
        EAGER.add(x, y, bias)
        return
    grid, shape = _launch(x)
    with torch.cuda.device(x.device):
        _add[grid](
            *(x, y, x if bias is None else bias),
            *(x.shape[1], x.stride(0), y.stride(0)),
            with_bias=bias is not None,
            **shape,
        )


def _channels_last(x: Tensor) -> bool:
    """True if each video's positions follow one another, all channels of one together."""
    return x.stride(2) == 1 and x.stride(1) == x.shape[2]


def _launch(x: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid of a launch, and the sizes that a kernel is built for."""
    batch, positions, channels = x.shape
    width = int(triton.next_power_of_2(channels))
    block = max(1, _NUMBERS_AT_ONCE // width)
    grid = (int(triton.cdiv(positions, block)), batch)
    return grid, {"channels": channels, "block": block, "width": width}
