"""The operations of Wan's VAE between its convolutions, in few passes over memory.

Every operation works on rows: a tensor ``[B, C, T, H, W]`` seen as ``[B, N, C]``, where
N = T * H * W. This view exists in both memory layouts, so nothing is copied for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import named_line

EPS: Final = 1e-12
"""The smallest length that diffusers' ``WanRMS_norm`` divides by."""


def rows(x: Tensor) -> Tensor:
    """``[B, C, T, H, W]`` as a view ``[B, N, C]``; an error where that would be a copy."""
    return x.permute(0, 2, 3, 4, 1).view(x.shape[0], -1, x.shape[1])


def norm(x: Tensor, gamma: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """Writes ``gamma * x / |x|`` to ``out``.

    Args:
        x: ``[B, N, C]``.
        gamma: ``[C]`` float32, which contains the factor ``sqrt(C)`` of an RMS norm.
        out: ``[B, N, C]``, for example a part of the next convolution's input.
        bias: ``[C]`` of the preceding convolution, added to ``x`` first.
    """
    if bias is not None:
        x = x + bias
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    torch.div(x, length.clamp_min_(EPS), out=out)
    out.mul_(gamma)


def norm_silu(x: Tensor, gamma: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """Writes ``silu(gamma * x / |x|)`` to ``out``; see ``norm``."""
    norm(x, gamma, out, bias)
    F.silu(out, inplace=True)


def add(x: Tensor, y: Tensor, bias: Tensor | None = None) -> None:
    """Adds ``y`` and a bias ``[C]`` to ``x`` in place, all of them rows."""
    x.add_(y)
    if bias is not None:
        x.add_(bias)


def fused_norm_silu(x: Tensor, gamma: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """``norm_silu`` as the compiler turns it into one kernel; slower without a compiler."""
    y = x.float()
    if bias is not None:
        y = y + bias
    length = y.square().sum(-1, keepdim=True).sqrt().clamp_min(EPS)
    out.copy_(F.silu(y / length * gamma))


def fused_add(x: Tensor, y: Tensor, bias: Tensor | None = None) -> None:
    """``add`` as the compiler turns it into one kernel."""
    x.copy_(x + y if bias is None else x + y + bias)


@dataclass(frozen=True)
class Kernels:
    """The operations between the convolutions.

    Attributes:
        norm_silu: The function of that name, or a faster one.
        add: The function of that name, or a faster one.
        adds_bias: True if they add the preceding convolution's bias at no cost. The convolution
            then runs without, which saves a pass: cuDNN adds a bias in a kernel of its own.
    """

    norm_silu: Callable[..., None]
    add: Callable[..., None]
    adds_bias: bool = False


EAGER: Final = Kernels(norm_silu, add)


class OrPlain:
    """A fast operation, or the plain one from the moment that the fast one cannot be built here.

    A kernel that cannot be built has changed nothing.

    Args:
        fast: The operation.
        plain: The slower one, which gives the same.
    """

    def __init__(self, fast: Callable[..., None], plain: Callable[..., None]) -> None:
        self.fast, self.plain = fast, plain
        self.failed = False

    def __call__(self, *tensors: Tensor | None) -> None:
        """Runs the operation."""
        if not self.failed:
            try:
                return self.fast(*tensors)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self.failed = True
                note(
                    f"decode: a kernel could not be built ({named_line(error)[:180]}); "
                    "going on without it, which is slower and gives the same"
                )
        return self.plain(*tensors)


@lru_cache(maxsize=2)
def fused(device_type: str) -> Kernels:
    """The operations as one kernel each, for any number of positions.

    On a GPU they are Triton's. Elsewhere PyTorch's compiler makes them, one graph per number of
    channels; beyond its limit of graphs they run uncompiled, so no size of video is an error.

    Args:
        device_type: ``cuda`` or ``cpu``.
    """
    if device_type == "cuda":
        from infer.vae import triton_kernels

        # cuDNN adds a bias in a pass of its own, oneDNN inside the convolution.
        return Kernels(
            OrPlain(triton_kernels.norm_silu, norm_silu),
            OrPlain(triton_kernels.add, add),
            adds_bias=True,
        )
    return Kernels(_compile(fused_norm_silu), _compile(fused_add))


def _compile(operation: Callable[..., None]) -> Callable[..., None]:
    graph = torch.compile(operation)

    def run(*tensors: Tensor | None) -> None:
        for tensor in tensors:
            if tensor is not None and tensor.ndim == 3:
                torch._dynamo.maybe_mark_dynamic(tensor, 1)
                torch._dynamo.mark_static(tensor, 2)
        graph(*tensors)

    return run
