"""Matrix products of a Wan block, with what follows them done by the product's own kernel.

GELU costs a pass over the widest tensor of a block. cuBLASLt (on a GPU) and oneDNN (on a CPU) apply
it to the result of a product before that leaves the registers. In float32 on x86 oneDNN is also the
faster library for the products themselves, above all with weights in its own layout; but not on
Intel's processors, where PyTorch's own, MKL, was faster on the one that was measured, a Xeon with
AVX-512 (docs/decisions/011). There GELU overwrites the product.

The products of quantised weights and of LoRA layers are left alone.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# M tokens of all videos, K inputs, N outputs

_TOKENS: tuple[int, int] = (4096, 128)
"""Rows that oneDNN lays weights out for, of the video and of the text; it takes any number."""


def fuse_products(network: Any, device: torch.device, compiled: bool) -> None:
    """Replaces products of a ``WanTransformer3DModel``'s blocks where this machine has faster ones.

    Args:
        network: A network with plain weights, fused or not, that want no gradient.
        device: The device it runs on.
        compiled: True if its blocks are compiled: a compiler cannot trace oneDNN's own layout of
            the weights.
    """
    dtype = network.blocks[0].ffn.net[2].weight.dtype
    if device.type == "cuda" and gelu_product_works(device, dtype):
        for block in network.blocks:
            block.ffn.net[0] = GeluProduct(block.ffn.net[0].proj)
    elif device.type == "cpu" and dtype == torch.float32 and mkl_is_faster():
        if not compiled:  # a compiler finds its own place for GELU
            for block in network.blocks:
                block.ffn.net[0] = GeluInPlace(block.ffn.net[0].proj)
    elif device.type == "cpu" and dtype == torch.float32 and onednn_works():
        register()
        for block in network.blocks:
            _use_onednn(block, packed=not compiled)


class GeluProduct(nn.Module):
    """A linear layer and the tanh form of GELU in one kernel.

    Args:
        proj: The linear layer.
    """

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        result: Tensor = torch.ops.lightx2v_sgmd.gelu_product(x, self.proj.weight, self.proj.bias)
        return result


class GeluInPlace(nn.Module):
    """A linear layer and the tanh form of GELU, which overwrites the layer's output.

    Args:
        proj: The linear layer.
    """

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        result: Tensor = torch.ops.aten.gelu_(self.proj(x), approximate="tanh")
        return result


class OnednnProduct(nn.Module):
    """A linear layer by oneDNN, in float32 on a CPU.

    Args:
        linear: The layer, whose weights it takes.
        rows: The usual number of rows of its inputs.
        gelu: True if the tanh form of GELU follows.
        packed: True if the weights go to oneDNN's own layout.
    """

    kernel_weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, rows: int, gelu: bool = False, packed: bool = True):
        super().__init__()
        weight = linear.weight.detach()
        if packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.register_buffer("kernel_weight", weight, persistent=False)
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias, persistent=False)
        self.gelu, self.packed = gelu, packed

    @property
    def weight(self) -> Tensor:
        """The weights ``[N, K]`` in PyTorch's layout; a copy if they are packed."""
        return self.kernel_weight.to_dense() if self.packed else self.kernel_weight

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        if self.packed:
            return _onednn(x, self.kernel_weight, self.bias, self.gelu)
        product = torch.ops.lightx2v_sgmd.onednn_product
        result: Tensor = product(x, self.kernel_weight, self.bias, self.gelu)
        return result


def _use_onednn(block: Any, packed: bool) -> None:
    video, text = _TOKENS
    for attention in (block.attn1, block.attn2):
        for name, layer in list(attention.named_children()):
            if isinstance(layer, nn.Linear):
                of_text = attention is block.attn2 and name != "to_q"
                product = OnednnProduct(layer, text if of_text else video, packed=packed)
                setattr(attention, name, product)
        attention.to_out[0] = OnednnProduct(attention.to_out[0], video, packed=packed)
    layers = block.ffn.net
    layers[0] = OnednnProduct(layers[0].proj, video, gelu=True, packed=packed)
    layers[2] = OnednnProduct(layers[2], video, packed=packed)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    after: Any = ("gelu", [], "tanh") if gelu else ("none", [], "")
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after)
    return result


def _gelu_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.device.type != "cuda":
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    # On a GPU this operation's GELU is the tanh form.
    flat = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return flat.view(*x.shape[:-1], weight.shape[0])


@cache
def register() -> None:
    """Names both products as operators: a compiler calls them and does not look inside."""
    onednn = torch.library.custom_op(
        "lightx2v_sgmd::onednn_product",
        _onednn,
        mutates_args=(),
        schema="(Tensor x, Tensor weight, Tensor? bias, bool gelu) -> Tensor",
    )
    onednn.register_fake(lambda x, weight, bias, gelu: x.new_empty(*x.shape[:-1], len(weight)))
    gelu = torch.library.custom_op(
        "lightx2v_sgmd::gelu_product",
        _gelu_product,
        mutates_args=(),
        schema="(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    )
    gelu.register_fake(lambda x, weight, bias: x.new_empty(*x.shape[:-1], len(weight)))


@cache
def mkl_is_faster() -> bool:
    """True on Intel's processors, if this PyTorch has Intel's library MKL.

    The maker decides, not a trial: what is computed must not change from one run to the next.
    """
    mkl: Any = torch.backends.mkl
    if not mkl.is_available():
        return False
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        about = platform.processor()
    return "GenuineIntel" in about


@cache
def onednn_works() -> bool:
    """True if this is an x86 processor whose oneDNN gives what PyTorch's product gives."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    onednn: Any = torch.backends.mkldnn
    if not onednn.is_available() or not onednn.enabled:
        return False
    x, layer = _example(torch.device("cpu"), torch.float32)
    try:
        got = OnednnProduct(layer, len(x), gelu=True)(x)
    except (RuntimeError, AttributeError):  # the operators are private, another torch may lack them
        return False
    return _agrees(got, x, layer, 1e-5)


@cache
def gelu_product_works(device: torch.device, dtype: torch.dtype) -> bool:
    """True if a product with GELU in its kernel gives what the two give one after the other."""
    register()
    x, layer = _example(device, dtype)
    try:
        got = GeluProduct(layer)(x)
    except (RuntimeError, AttributeError):
        return False
    return _agrees(got, x, layer, 1e-5 if dtype == torch.float64 else 2e-2)


def _example(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, nn.Linear]:
    generator = torch.Generator("cpu").manual_seed(0)
    numbers = torch.randn(96 + 1 + 80, 64, generator=generator)
    layer = nn.Linear(64, 96, device="meta").to_empty(device="cpu").requires_grad_(False)
    layer.weight.copy_(numbers[:96])
    layer.bias.copy_(numbers[96:97].repeat(1, 2)[0, :96])
    return numbers[97:].to(device, dtype), layer.to(device, dtype)


@torch.no_grad()
def _agrees(got: Tensor, x: Tensor, layer: nn.Linear, tolerance: float) -> bool:
    expected = F.gelu(layer(x), approximate="tanh").float()
    difference = (got.float() - expected).abs().max() / expected.abs().max()
    return bool(difference < tolerance)
