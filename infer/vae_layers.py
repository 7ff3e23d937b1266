"""The layers of Wan's VAE decoder for chunks of any number of frames.

They use the weights of diffusers' modules and give the same numbers up to rounding.

B batch, C channels, T frames, H, W height and width at a layer, N = T * H * W positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infer.vae_kernels import Kernels, norm, rows

Caches = dict[int, Tensor]
"""The last two input frames ``[B, C, 2, H, W]`` of every causal convolution, for one video."""


class Convolution:
    """A convolution with a kernel ``[C', C, t, h, w]``, padded in space and not in time.

    Attributes:
        weight: The kernel in the memory layout that the decoder computes in.
        bias: ``[C']``.
        layout: That memory layout.
    """

    def __init__(self, layer: Any, layout: torch.memory_format) -> None:
        weight = layer.weight.detach()
        weight = weight if weight.ndim == 5 else weight[:, :, None]
        self.weight = weight.contiguous(memory_format=layout)
        self.bias = layer.bias.detach()
        self.layout = layout
        self._padding = (0, weight.shape[3] // 2, weight.shape[4] // 2)

    def __call__(self, x: Tensor, with_bias: bool = True) -> Tensor:
        """Runs the convolution; T shrinks by ``t - 1``."""
        return self._run(x, self.weight, with_bias)

    def _run(self, x: Tensor, weight: Tensor, with_bias: bool) -> Tensor:
        bias = self.bias if with_bias else None
        return F.conv3d(x, weight, bias, padding=self._padding)

    def empty(self, shape: torch.Size, frames: int) -> Tensor:
        """An uninitialised tensor of a shape ``[B, C, T, H, W]`` with another T."""
        sizes = (*shape[:2], frames, *shape[3:])
        return torch.empty(
            sizes, dtype=self.weight.dtype, device=self.weight.device, memory_format=self.layout
        )


class CausalConvolution(Convolution):
    """A convolution over each frame and the two frames before it, earlier chunks included.

    The input is written behind the two remembered frames, where the convolution reads it: it is
    neither concatenated nor padded.
    """

    def causal(
        self,
        shape: torch.Size,
        write: Callable[[Tensor], object],
        caches: Caches,
        with_bias: bool = True,
    ) -> Tensor:
        """Runs the convolution on the next chunk of a video.

        Args:
            shape: ``[B, C, T, H, W]`` of the chunk. The first chunk of a video has T = 1.
            write: Writes the chunk into the tensor that it is given.
            caches: The video's caches; those of this layer are updated.
            with_bias: Whether to add the bias.

        Returns:
            ``[B, C', T, H, W]``.
        """
        cache = caches.get(id(self))
        if cache is None:
            # The two frames before the first one are zeros: the last third of the kernel is enough.
            assert shape[2] == 1, "the first chunk of a video must have one frame"
            x = self.empty(shape, 1)
            write(x)
            cache = self.forget(shape, caches)
            cache[:, :, 1:].copy_(x)
            return self._run(x, self.weight[:, :, -1:], with_bias)
        x = self.empty(shape, shape[2] + 2)
        x[:, :, :2].copy_(cache)
        write(x[:, :, 2:])
        cache.copy_(x[:, :, -2:])
        return self(x, with_bias)

    def forget(self, shape: torch.Size, caches: Caches) -> Tensor:
        """Sets this layer's cache to zeros, as before the first frame."""
        caches[id(self)] = self.empty(shape, 2).zero_()
        return caches[id(self)]


def _gamma(layer: Any) -> Tensor:
    gamma: Tensor = layer.gamma.detach().float().flatten()
    return gamma * math.sqrt(len(gamma))


class NormConvolution(CausalConvolution):
    """An RMS norm, SiLU and a causal convolution: norm and SiLU write the convolution's input."""

    def __init__(self, norm_layer: Any, layer: Any, layout: torch.memory_format) -> None:
        super().__init__(layer, layout)
        self.gamma = _gamma(norm_layer)

    def normed(
        self,
        x: Tensor,
        kernels: Kernels,
        caches: Caches,
        bias: Tensor | None = None,
        with_bias: bool = True,
    ) -> Tensor:
        """Runs all three on the next chunk, after adding ``bias`` to it."""

        def write(out: Tensor) -> None:
            kernels.norm_silu(rows(x), self.gamma, rows(out), bias)

        return self.causal(x.shape, write, caches, with_bias)


class Residual:
    """diffusers' ``WanResidualBlock``."""

    def __init__(self, block: Any, layout: torch.memory_format) -> None:
        self.first = NormConvolution(block.norm1, block.conv1, layout)
        self.second = NormConvolution(block.norm2, block.conv2, layout)
        self.shortcut: Tensor | None = None
        self.bias = self.second.bias
        if hasattr(block.conv_shortcut, "weight"):
            self.shortcut = block.conv_shortcut.weight.detach().flatten(1)
            self.bias = self.bias + block.conv_shortcut.bias.detach()

    def __call__(self, x: Tensor, kernels: Kernels, caches: Caches) -> Tensor:
        """The next chunk's output, ``[B, C', T, H, W]``."""
        inside = not kernels.adds_bias
        y = self.first.normed(x, kernels, caches, with_bias=inside)
        before = None if inside else self.first.bias
        y = self.second.normed(y, kernels, caches, before, with_bias=False)
        shortcut = rows(x)
        if self.shortcut is not None:
            shortcut = F.linear(shortcut, self.shortcut)
        kernels.add(rows(y), shortcut, self.bias)
        return y


class Attention:
    """diffusers' ``WanAttentionBlock``: each frame's positions attend to one another."""

    def __init__(self, block: Any) -> None:
        self.gamma = _gamma(block.norm)
        self.qkv = [block.to_qkv.weight.detach().flatten(1), block.to_qkv.bias.detach()]
        self.proj = [block.proj.weight.detach().flatten(1), block.proj.bias.detach()]

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` with the attention's output added in place."""
        frames = x.shape[0] * x.shape[2]
        y = torch.empty_like(x)
        norm(rows(x), self.gamma, rows(y))
        qkv = F.linear(rows(y).reshape(frames, 1, -1, x.shape[1]), *self.qkv)
        y = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        rows(x).add_(F.linear(y, *self.proj).view(rows(x).shape))
        return x


class Upsample:
    """diffusers' ``WanResample``: twice the height and width, and for some twice the frames."""

    def __init__(self, layer: Any, layout: torch.memory_format) -> None:
        self.in_space = Convolution(layer.resample[1], layout)
        self.in_time: CausalConvolution | None = None
        if layer.mode == "upsample3d":
            self.in_time = CausalConvolution(layer.time_conv, layout)

    def __call__(self, x: Tensor, caches: Caches) -> Tensor:
        """The next chunk's output, ``[B, C', T or 2 T, 2 H, 2 W]``."""
        parts = 1
        if self.in_time is not None:
            if id(self.in_time) in caches:
                x = self.in_time.causal(x.shape, lambda out, x=x: out.copy_(x), caches)
                parts = 2
            else:  # The first frame stays one frame, and the layer does not remember it.
                self.in_time.forget(x.shape, caches)
        return self.in_space(self._enlarge(x, parts))

    def _enlarge(self, x: Tensor, parts: int) -> Tensor:
        """Repeats each pixel, and makes the ``parts`` of the channels consecutive frames."""
        batch, channels, frames, height, width = x.shape
        channels //= parts
        shape = torch.Size((batch, channels, frames * parts, 2 * height, 2 * width))
        out = self.in_space.empty(shape, frames * parts)
        source = x.view(batch, parts, channels, frames, height, width).permute(0, 2, 3, 1, 4, 5)
        target = out.view(batch, channels, frames, parts, height, 2, width, 2)
        target.copy_(source[:, :, :, :, :, None, :, None].expand_as(target))
        return out
