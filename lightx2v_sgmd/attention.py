"""Which attention kernels can run here, and choosing one.

A kernel counts as available when its package imports, diffusers accepts its version, and a small
attention on the device, in the dtype and with the head size in question, agrees with plain PyTorch.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F

from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.quiet import no_warnings

if TYPE_CHECKING:
    from diffusers import ModelMixin

# B batch, S tokens, N heads, D head size


@dataclass(frozen=True)
class AttentionKernel:
    """A kernel, whether it can run, and why (not)."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True)
class _Known:
    backend: str  # diffusers' name
    module: str | None
    package: str
    capability: tuple[int, int]  # least CUDA compute capability
    install: str


KERNELS: Final = {
    "flash3": _Known(
        "_flash_3",
        "flash_attn_interface",
        "FlashAttention 3",
        (9, 0),
        "build it from github.com/Dao-AILab/flash-attention, folder hopper/",
    ),
    "flash2": _Known(
        "flash",
        "flash_attn",
        "FlashAttention 2",
        (8, 0),
        "pip install flash-attn --no-build-isolation",
    ),
    "xformers": _Known("xformers", "xformers.ops", "xFormers", (7, 0), "pip install xformers"),
    "sdpa": _Known("native", None, "PyTorch", (0, 0), ""),
}
"""Fastest first: the order of ``auto``."""


def kernels(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[AttentionKernel]:
    """Every kernel this library knows, fastest first, and whether it runs in this setting."""
    return [_probe(name, known, device, dtype, head_dim) for name, known in KERNELS.items()]


def choose(requested: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The name of the kernel to use: the requested one, or the fastest that runs for ``auto``.

    Raises:
        UserError: the name is unknown, or the requested kernel cannot run here; says why.
    """
    if requested != "auto" and requested not in KERNELS:
        raise UserError(f"attention: {requested!r} is unknown; use auto, {', '.join(KERNELS)}")
    if requested == "auto":
        # The last one, PyTorch's own, runs unless the device itself does not.
        requested = next(
            (k.name for k in kernels(device, dtype, head_dim) if k.available), list(KERNELS)[-1]
        )
    kernel = _probe(requested, KERNELS[requested], device, dtype, head_dim)
    if not kernel.available:
        raise UserError(
            f"attention: {requested} cannot run here: {kernel.reason}; see `lightx2v-sgmd doctor`"
        )
    return requested


def apply(network: ModelMixin, kernel: str) -> None:
    """Makes a diffusers network use a kernel from ``choose``.

    Only this network changes: diffusers' own call also switches the default of the whole process,
    which is put back here.
    """
    from diffusers.models.attention_dispatch import attention_backend

    with attention_backend("native"), no_warnings("diffusers.models.modeling_utils"):
        network.set_attention_backend(KERNELS[kernel].backend)


def _probe(
    name: str, known: _Known, device: torch.device, dtype: torch.dtype, head_dim: int
) -> AttentionKernel:
    reason = _why_not(known, device, dtype)
    if reason is None:
        reason = _trial(known.backend, device, dtype, head_dim)
    if reason is not None:
        return AttentionKernel(name, False, reason)
    short = str(dtype).removeprefix("torch.")
    return AttentionKernel(
        name, True, f"{known.package} ran on {device.type} in {short} with heads of {head_dim}"
    )


def _why_not(known: _Known, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is in the way of a kernel before trying it, or None."""
    if known.module is None:
        return None
    if device.type != "cuda":
        return f"{known.package} needs a CUDA device, and this is {device.type}"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if not _is_installed(known.module):
        return f"{known.package} is not installed ({known.install})"
    capability = torch.cuda.get_device_capability(device)
    if capability < known.capability:
        have, need = (".".join(map(str, c)) for c in (capability, known.capability))
        return f"{known.package} needs compute capability {need}, this GPU has {have}"
    if known.package.startswith("Flash") and dtype not in (torch.bfloat16, torch.float16):
        return f"{known.package} runs in bfloat16 and float16, not in {dtype}"
    try:
        importlib.import_module(known.module)
    except Exception as error:  # an extension built for another torch fails in many ways
        return f"{known.package} does not import: {_first_line(error)}"
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _trial(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Runs a small attention and compares it with float32 PyTorch: what is wrong, or None."""
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    generator = torch.Generator("cpu").manual_seed(0)
    inputs = torch.randn(3, 1, 24, 2, head_dim, generator=generator).to(dtype)  # each BSND
    expected = F.scaled_dot_product_attention(*inputs.float().transpose(2, 3)).transpose(1, 2)
    try:
        with torch.no_grad(), attention_backend(backend):
            got = dispatch_attention_fn(*inputs.to(device)).float().cpu()
    except Exception as error:  # whatever a kernel raises, it cannot run
        return f"it fails on a small example: {_first_line(error)}"
    difference = (got - expected).abs().max().item()
    if not difference < 0.03:
        return f"it is wrong on a small example (off by {difference:.2g})"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
