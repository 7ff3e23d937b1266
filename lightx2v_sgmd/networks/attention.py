"""Attention kernels: tells which can run here, and chooses one.

A kernel counts as available when its package imports, diffusers accepts its version, and small
attentions on the given device, in the given dtype and head size, agree with plain PyTorch.
Approximate kernels are used only when they are asked for by name.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightx2v_sgmd.networks.flash_attention4 import MODULE as FLASH4_MODULE
from lightx2v_sgmd.networks.flash_attention4 import flash_attention_4
from lightx2v_sgmd.networks.kernel_names import Attention
from lightx2v_sgmd.system.errors import UserError, first_line
from lightx2v_sgmd.system.optional_packages import prepare_libraries, why_unusable
from lightx2v_sgmd.system.quiet import no_warnings
from lightx2v_sgmd.system.torch_faults import cudnn_version

if TYPE_CHECKING:
    from diffusers import ModelMixin

# B batch, S tokens, N heads, D head size


@dataclass(frozen=True)
class AttentionKernel:
    """A kernel: its name, True if it can run, and the reason."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True)
class _Known:
    """A kernel as this library knows it.

    Attributes:
        backend: The name that diffusers' dispatcher has for it.
        module: The module that must import, or None for PyTorch's own kernels.
        package: The package's name for messages.
        capability: Least CUDA compute capability; None runs anywhere.
        install: The command that installs it.
        half_only: True if it runs in bfloat16 and float16 only.
        auto_from: Least capability at which ``auto`` uses it; None: only if it is asked for.
        approximate: Difference from exact attention; "" for exact kernels.
        tolerance: Largest error of the trial.
        cudnn: Least version of cuDNN, as ``torch.backends.cudnn.version`` gives it.
        instead: A module that has the same kernel where ``module`` is not installed.
    """

    backend: str
    module: str | None
    package: str
    capability: tuple[int, int] | None = None
    install: str = ""
    half_only: bool = False
    auto_from: tuple[int, int] | None = None
    approximate: str = ""
    tolerance: float = 0.03
    cudnn: int = 0
    instead: str = ""


KERNELS: Final = {
    "flash4": _Known(
        "flash_4_hub",
        FLASH4_MODULE,
        "FlashAttention 4",
        (9, 0),
        "pip install flash-attn-4",
        half_only=True,
        auto_from=(10, 0),  # on Hopper, FlashAttention 3 is older and better tested
    ),
    "flash3": _Known(
        "_flash_3",
        "flash_attn_interface",
        "FlashAttention 3",
        (9, 0),
        "pip install fa3-fwd, or build it: github.com/Dao-AILab/flash-attention, folder hopper",
        half_only=True,
        auto_from=(9, 0),
        instead="fa3_fwd_interface",  # its forward pass alone, as a wheel
    ),
    "sdpa-cudnn": _Known(
        "_native_cudnn",
        None,
        "PyTorch's cuDNN attention",
        (8, 0),
        half_only=True,
        auto_from=(9, 0),  # where it uses the tensor cores' newer instructions, as the above do
        # Before, it was wrong where the tokens are no multiple of 128; from this version on
        # PyTorch itself prefers it.
        cudnn=91501,
    ),
    "flash2": _Known(
        "flash",
        "flash_attn",
        "FlashAttention 2",
        (8, 0),
        "pip install flash-attn --no-build-isolation",
        half_only=True,
        auto_from=(8, 0),
    ),
    "xformers": _Known(
        "xformers",
        "xformers.ops",
        "xFormers",
        (7, 0),
        "pip install xformers",
        auto_from=(7, 0),
    ),
    "sdpa": _Known("native", None, "PyTorch", auto_from=(0, 0)),
    "sdpa-flash": _Known("_native_flash", None, "PyTorch's flash attention"),
    "sdpa-efficient": _Known(
        "_native_efficient", None, "PyTorch's memory-efficient attention", (5, 0)
    ),
    "sage": _Known(
        "sage",
        "sageattention",
        "SageAttention",
        (8, 0),
        "pip install sageattention",
        half_only=True,
        approximate="it multiplies queries and keys in int8",
        tolerance=0.15,
    ),
}
assert {"auto", *KERNELS} == {*get_args(Attention)}, "a kernel has two names"
"""The kernels by name, fastest first; ``auto`` tries the exact ones in this order."""

_TRIALS: Final = ((300, 300), (300, 37))
"""Numbers of queries and keys in the trials: attention to a video, and to a text.

300 is no multiple of the tiles that kernels work in, and more than two of 128.
"""


def kernels(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[AttentionKernel]:
    """Tries every known kernel in this setting; the fastest kernel is first."""
    return [_probe(name, known, device, dtype, head_dim) for name, known in KERNELS.items()]


def choose(requested: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The name of the kernel to use: the requested one, or for ``auto`` the fastest that runs.

    Raises:
        UserError: the name is unknown, or the requested kernel cannot run here; says why.
    """
    if requested != "auto" and requested not in KERNELS:
        raise UserError(f"attention: {requested!r} is unknown; use auto, {', '.join(KERNELS)}")
    if requested == "auto":
        # PyTorch's own runs unless the device itself does not.
        names = _auto(device, dtype, head_dim)
        tried = (_probe(name, KERNELS[name], device, dtype, head_dim) for name in names)
        requested = next((kernel.name for kernel in tried if kernel.available), "sdpa")
    kernel = _probe(requested, KERNELS[requested], device, dtype, head_dim)
    if not kernel.available:
        raise UserError(
            f"attention: {requested} cannot run here: {kernel.reason}; see `lightx2v-sgmd doctor`"
        )
    return requested


def _auto(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """The kernels that ``auto`` tries on a device, fastest first.

    Where plain PyTorch runs cuDNN's kernel by itself, it does so without the copies of q, k, v and
    the output that diffusers' own use of cuDNN makes.
    """
    capability = (0, 0)
    if device.type == "cuda" and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(device)
    names = [
        name
        for name, known in KERNELS.items()
        if known.auto_from is not None and known.auto_from <= capability
    ]
    if "sdpa-cudnn" in names and sdpa_runs_cudnn(device, dtype, head_dim):
        names[names.index("sdpa-cudnn")] = "sdpa"
    return names


def sdpa_runs_cudnn(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """True if PyTorch's own choice for plain attention in this setting is cuDNN's kernel.

    PyTorch is asked, for its rule depends on its version, cuDNN's, the GPU and the environment.
    """
    from torch.nn.attention import SDPBackend

    if device.type != "cuda":
        return False
    queries, _ = _TRIALS[0]
    try:
        q = torch.empty(1, queries, 2, head_dim, dtype=dtype, device=device).transpose(1, 2)
        chosen = torch._fused_sdp_choice(q, q, q)
    except Exception:  # PyTorch's own function, not a public one: without it cuDNN is asked for
        return False
    return chosen == int(SDPBackend.CUDNN_ATTENTION.value)


def apply(network: ModelMixin, kernel: str) -> None:
    """Makes a diffusers network use a kernel from ``choose``.

    Only this network changes: diffusers' own call also switches the default of the whole process,
    which is put back here.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    backend = KERNELS[kernel].backend
    if kernel == "flash4":
        # diffusers would fetch this kernel from its hub; here it is the installed package's.
        _lend_flash4()
        for processor in network.attn_processors.values():
            getattr(processor, "processor", processor)._attention_backend = AttentionBackendName(
                backend
            )
        return
    if kernel == "flash3":
        _lend_flash3()
    with attention_backend("native"), no_warnings("diffusers.models.modeling_utils"):
        network.set_attention_backend(backend)


def attend(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Runs one kernel as the network does, for benchmarks and checks.

    Args:
        kernel: A name of ``KERNELS`` that is available.
        query: ``[B, S, N, D]``.
        key: ``[B, L, N, D]``.
        value: ``[B, L, N, D]``.

    Returns:
        ``[B, S, N, D]``.
    """
    prepare_libraries()
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    backend = KERNELS[kernel].backend
    with _asked_directly(backend):
        result: Tensor = dispatch_attention_fn(
            query, key, value, backend=AttentionBackendName(backend)
        )
    return result


def _lend_flash3() -> None:
    """Gives diffusers' dispatcher the wheel's FlashAttention 3 where its usual package is not."""
    from diffusers.models import attention_dispatch

    if not attention_dispatch._CAN_USE_FLASH_ATTN_3:
        wheel = importlib.import_module(KERNELS["flash3"].instead)
        attention_dispatch.flash_attn_3_func = wheel.flash_attn_func
        attention_dispatch._CAN_USE_FLASH_ATTN_3 = True


def _lend_flash4() -> None:
    """Gives diffusers' dispatcher the installed FlashAttention 4 under the name of its backend."""
    from diffusers.models import attention_dispatch

    registry = attention_dispatch._HUB_KERNELS_REGISTRY
    kernel = registry[attention_dispatch.AttentionBackendName(KERNELS["flash4"].backend)]
    kernel.kernel_fn = flash_attention_4()


def _probe(
    name: str, known: _Known, device: torch.device, dtype: torch.dtype, head_dim: int
) -> AttentionKernel:
    reason = _why_not(known, device, dtype)
    if reason is None:
        reason = _trial(known.backend, device, dtype, head_dim, known.tolerance)
    if reason is not None:
        return AttentionKernel(name, False, reason)
    short = str(dtype).removeprefix("torch.")
    ran = f"{known.package} ran on {device.type} in {short} with heads of {head_dim}"
    if name == "sdpa" and sdpa_runs_cudnn(device, dtype, head_dim):
        ran += ", by cuDNN's kernel"
    return AttentionKernel(
        name, True, f"{ran}; approximate: {known.approximate}" if known.approximate else ran
    )


def _why_not(known: _Known, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why a kernel cannot run, as far as it shows without a trial, or None."""
    if known.capability is not None and device.type != "cuda":
        return f"{known.package} needs a CUDA device, and this is {device.type}"
    if device.type == "cuda" and known.capability is not None:
        if not torch.cuda.is_available():
            return "PyTorch sees no CUDA device"
        problem = _problem(known)
        if problem == "is not installed":
            return f"{known.package} is not installed ({known.install})"
        capability = torch.cuda.get_device_capability(device)
        if capability < known.capability:
            have, need = (".".join(map(str, c)) for c in (capability, known.capability))
            return f"{known.package} needs compute capability {need}, this GPU has {have}"
        cudnn = cudnn_version()
        if cudnn < known.cudnn:
            have, need = (f"{v // 10000}.{v // 100 % 100}.{v % 100}" for v in (cudnn, known.cudnn))
            return f"{known.package} is right from cuDNN {need} on, and this is {have}"
    if known.half_only and dtype not in (torch.bfloat16, torch.float16):
        return f"{known.package} runs in bfloat16 and float16, not in {dtype}"
    problem = _problem(known)
    return None if problem is None else f"{known.package} {problem}"


def _problem(known: _Known) -> str | None:
    """The problem of a kernel's package, or None; any package that has the kernel will do."""
    if known.module is None:
        return None
    problem = _unusable(known.module)
    if problem == "is not installed" and known.instead:
        problem = _unusable(known.instead)
    return problem


def _unusable(module: str) -> str | None:
    """The problem of a package, or of a module in it, or None."""
    package = module.partition(".")[0]
    problem = why_unusable(package)
    return why_unusable(module) if problem is None and package != module else problem


def _trial(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    tolerance: float = 0.03,
) -> str | None:
    """Compares small attentions with float32 PyTorch; returns the problem, or None."""
    prepare_libraries()
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    generator = torch.Generator("cpu").manual_seed(0)
    for queries, keys in _TRIALS:
        q = torch.randn(1, queries, 2, head_dim, generator=generator).to(dtype)  # BSND
        k, v = torch.randn(2, 1, keys, 2, head_dim, generator=generator).to(dtype)
        wide = [x.float().transpose(1, 2) for x in (q, k, v)]
        exact = F.scaled_dot_product_attention(wide[0], wide[1], wide[2])
        try:
            with torch.no_grad(), _asked_directly(backend):
                got = dispatch_attention_fn(
                    *(x.to(device) for x in (q, k, v)), backend=AttentionBackendName(backend)
                )
            difference = (got.float().cpu() - exact.transpose(1, 2)).abs().max().item()
        except Exception as error:  # whatever a kernel raises, it cannot run
            return f"it fails on a small example: {first_line(error)}"
        if not difference < tolerance:
            return (
                f"it is wrong on a small example of {queries} queries and {keys} keys "
                f"(off by {difference:.2g})"
            )
    return None


@contextmanager
def _asked_directly(backend: str) -> Iterator[None]:
    """Prepares diffusers' dispatcher for calls of one backend while the block runs."""
    from diffusers.models.attention_dispatch import attention_backend

    if backend == KERNELS["flash4"].backend:
        _lend_flash4()
        yield
        return
    if backend == KERNELS["flash3"].backend:
        _lend_flash3()
    with attention_backend(backend), warnings.catch_warnings():
        # PyTorch explains at length in warnings why a kernel of its own cannot run.
        warnings.simplefilter("ignore")
        yield
