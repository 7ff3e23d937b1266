"""The layers of Wan's VAE decoder for chunks of any number of frames.

They use the weights of diffusers' modules and give the same numbers up to rounding.

B batch, C channels, T frames, H, W height and width at a layer, N = T * H * W positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infer.vae.kernels import Kernels, norm, rows

Caches = dict["CausalConvolution", Tensor]
"""The last two input frames ``[B, C, 2, H, W]`` of every causal convolution, for one video."""


@dataclass(frozen=True)
class Target:
    """The device, precision and layout of a decoder's weights.

    Attributes:
        device: The device that decodes.
        layout: The memory layout of kernels and intermediate values.
    """

    device: torch.device
    layout: torch.memory_format

    def take(self, weight: Tensor) -> nn.Parameter:
        """A frozen copy of a module's weight, or the weight's own memory if nothing changes."""
        weight = weight.detach().to(self.device)
        if weight.ndim == 5:
            weight = weight.contiguous(memory_format=self.layout)
        return nn.Parameter(weight, requires_grad=False)


class Convolution(nn.Module):
    """A convolution with a kernel ``[C', C, t, h, w]``, padded in space and not in time.

    Attributes:
        weight: The kernel in the memory layout that the decoder computes in.
        bias: ``[C']``.
        layout: That memory layout.
    """

    def __init__(self, layer: Any, target: Target) -> None:
        super().__init__()
        weight = layer.weight if layer.weight.ndim == 5 else layer.weight[:, :, None]
        self.weight = target.take(weight)
        self.bias = target.take(layer.bias)
        self.layout = target.layout
        self._padding = (0, weight.shape[3] // 2, weight.shape[4] // 2)

    def forward(self, x: Tensor) -> Tensor:
        """The output, with ``t - 1`` frames fewer than the input."""
        return self._run(x, self.weight)

    def _run(self, x: Tensor, weight: Tensor, with_bias: bool = True) -> Tensor:
        bias = self.bias if with_bias else None
        if x.device.type == "cpu" and x.dtype == torch.float32 and _has_onednn():
            # PyTorch takes a slower convolution than oneDNN's for one small video.
            return torch.ops.aten.mkldnn_convolution(  # type: ignore[no-any-return]
                x, weight, bias, self._padding, (1, 1, 1), (1, 1, 1), 1
            )
        return F.conv3d(x, weight, bias, padding=self._padding)

    def enlarged(self, x: Tensor, parts: int) -> Tensor:
        """Repeats each pixel in both directions, as the input of a convolution.

        The channels come in ``parts``, which become consecutive frames.
        """
        batch, channels, frames, height, width = x.shape
        channels //= parts
        out = self._empty((batch, channels, 0, 2 * height, 2 * width), frames * parts)
        source = x.view(batch, parts, channels, frames, height, width).permute(0, 2, 3, 1, 4, 5)
        target = out.view(batch, channels, frames, parts, height, 2, width, 2)
        target.copy_(source[:, :, :, :, :, None, :, None].expand_as(target))
        return out

    def _empty(self, shape: Sequence[int], frames: int) -> Tensor:
        """An uninitialised tensor of a shape ``[B, C, T, H, W]`` with another T."""
        sizes = (*shape[:2], frames, *shape[3:])
        return torch.empty(
            sizes, dtype=self.weight.dtype, device=self.weight.device, memory_format=self.layout
        )


def _has_onednn() -> bool:
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.backends.mkldnn.enabled)


class CausalConvolution(Convolution):
    """A convolution over each frame and the two frames before it, earlier chunks included.

    Whoever has the next chunk writes it behind the two remembered frames, where the convolution
    reads it: nothing is concatenated or padded, and no other copy of the chunk lives meanwhile.
    """

    def input(self, shape: torch.Size, caches: Caches) -> tuple[Tensor, Tensor]:
        """The input of the next chunk of a video, and the part of it that the chunk goes into.

        Args:
            shape: ``[B, C, T, H, W]`` of the chunk. The first chunk of a video has T = 1.
            caches: The video's caches.
        """
        cache = caches.get(self)
        if cache is None:
            assert shape[2] == 1, "the first chunk of a video must have one frame"
            x = self._empty(shape, 1)
            return x, x
        x = self._empty(shape, shape[2] + 2)
        x[:, :, :2].copy_(cache)
        return x, x[:, :, 2:]

    def run(self, x: Tensor, caches: Caches, with_bias: bool = True) -> Tensor:
        """The output ``[B, C', T, H, W]``; what the next chunk needs goes into ``caches``."""
        if self not in caches:
            # The two frames before the first one are zeros: the last third of the kernel is enough.
            self.start(x.shape, caches)[:, :, 1:].copy_(x)
            return self._run(x, self.weight[:, :, -1:], with_bias)
        caches[self].copy_(x[:, :, -2:])
        return self._run(x, self.weight, with_bias)

    def causal(self, x: Tensor, caches: Caches) -> Tensor:
        """Runs the convolution on the next chunk ``[B, C, T, H, W]``."""
        whole, part = self.input(x.shape, caches)
        part.copy_(x)
        return self.run(whole, caches)

    def start(self, shape: torch.Size, caches: Caches) -> Tensor:
        """Puts zeros into this layer's cache, as before the first frame."""
        caches[self] = self._empty(shape, 2).zero_()
        return caches[self]


def _gamma(layer: Any, target: Target) -> nn.Parameter:
    gamma = layer.gamma.float().flatten()
    return target.take(gamma * math.sqrt(len(gamma)))


class NormConvolution(CausalConvolution):
    """An RMS norm, SiLU and a causal convolution."""

    def __init__(self, norm_layer: Any, layer: Any, target: Target) -> None:
        super().__init__(layer, target)
        self.gamma = _gamma(norm_layer, target)

    def normed(
        self, x: Tensor, kernels: Kernels, caches: Caches, bias: Tensor | None = None
    ) -> Tensor:
        """The convolution's input: norm and SiLU of the next chunk, after adding ``bias`` to it."""
        whole, part = self.input(x.shape, caches)
        kernels.norm_silu(rows(x), self.gamma, rows(part), bias)
        return whole


class Residual(nn.Module):
    """diffusers' ``WanResidualBlock``.

    Attributes:
        bias: The biases of everything that is added up, for kernels that add it on the way.
    """

    def __init__(self, block: Any, target: Target) -> None:
        super().__init__()
        self.first = NormConvolution(block.norm1, block.conv1, target)
        self.second = NormConvolution(block.norm2, block.conv2, target)
        bias = block.conv2.bias
        self.shortcut_weight: Tensor | None = None
        self.shortcut_bias: Tensor | None = None
        if hasattr(block.conv_shortcut, "weight"):
            self.shortcut_weight, self.shortcut_bias = _matrix(block.conv_shortcut, target)
            bias = bias + block.conv_shortcut.bias
        self.bias = target.take(bias)

    def forward(self, x: Tensor, kernels: Kernels, caches: Caches) -> Tensor:
        """The next chunk's output, ``[B, C', T, H, W]``."""
        fused = kernels.adds_bias
        y = self.first.run(self.first.normed(x, kernels, caches), caches, not fused)
        whole = self.second.normed(y, kernels, caches, self.first.bias if fused else None)
        del y  # so that at most three tensors of the chunk's size live at once
        y = self.second.run(whole, caches, not fused)
        del whole
        shortcut = rows(x)
        if self.shortcut_weight is not None:
            bias = None if fused else self.shortcut_bias
            shortcut = F.linear(shortcut, self.shortcut_weight, bias)
        kernels.add(rows(y), shortcut, self.bias if fused else None)
        return y


def _matrix(layer: Any, target: Target) -> tuple[nn.Parameter, nn.Parameter]:
    """A convolution without extent, ``[C', C, 1, 1]``, as a matrix and a bias."""
    return target.take(layer.weight.flatten(1)), target.take(layer.bias)


class Attention(nn.Module):
    """diffusers' ``WanAttentionBlock``: each frame's positions attend to one another."""

    def __init__(self, block: Any, target: Target) -> None:
        super().__init__()
        self.gamma = _gamma(block.norm, target)
        self.qkv, self.qkv_bias = _matrix(block.to_qkv, target)
        self.proj, self.proj_bias = _matrix(block.proj, target)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with the attention's output added in place."""
        frames = x.shape[0] * x.shape[2]
        y = torch.empty_like(x)
        norm(rows(x), self.gamma, rows(y))
        qkv = F.linear(rows(y).reshape(frames, 1, -1, x.shape[1]), self.qkv, self.qkv_bias)
        q, k, v = qkv.chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)
        rows(x).add_(F.linear(y, self.proj, self.proj_bias).reshape(rows(x).shape))
        return x


class Upsample(nn.Module):
    """diffusers' ``WanResample``: twice the height and width, in some places twice the frames."""

    def __init__(self, layer: Any, target: Target) -> None:
        super().__init__()
        self.in_space = Convolution(layer.resample[1], target)
        self.in_time: CausalConvolution | None = None
        if layer.mode == "upsample3d":
            self.in_time = CausalConvolution(layer.time_conv, target)

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        """The next chunk's output, ``[B, C', T or 2 T, 2 H, 2 W]``."""
        parts = 1
        if self.in_time is not None:
            if self.in_time in caches:
                x, parts = self.in_time.causal(x, caches), 2
            else:  # The first frame stays one frame, and the layer does not remember it.
                self.in_time.start(x.shape, caches)
        result: Tensor = self.in_space(self.in_space.enlarged(x, parts))
        return result
