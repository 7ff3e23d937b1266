"""The settings that an engine runs with: its options, settled for a model and this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from typing import Final, get_args

import torch

from infer.memory_mode import MemoryMode, Workload, choose_memory_mode, needed_gib
from infer.options import Options, Quantize
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.features import require_feature
from lightx2v_sgmd.files.tensors import dtypes
from lightx2v_sgmd.networks import attention as kernels
from lightx2v_sgmd.networks.block_loading import repeated_blocks
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.host_memory import GIB, available_gib, refuse_too_large, swap_gib
from lightx2v_sgmd.system.optional_packages import why_unusable
from lightx2v_sgmd.text.loading import encoder_parameters

_LARGE_ENCODER: Final = 10**9
"""Parameters from which a text encoder runs in bfloat16 on a CPU."""


@dataclass(frozen=True)
class EnginePlan:
    """The settings of an engine.

    Attributes:
        options: The options that were asked for.
        device: The device.
        dtype: Precision of the network.
        text_dtype: Precision of the text encoder: that of training, if the weights say it.
        attention: The attention kernel.
        memory_mode: The memory mode.
        compile: True if blocks are compiled.
        fuse_qkv: True if queries, keys and values are one product.
        limit_gib: The memory limit, if there is one.
        fitted: True if the memory mode saves more than was asked for, to stay below the limit.
    """

    options: Options
    device: torch.device
    dtype: torch.dtype
    text_dtype: torch.dtype
    attention: str
    memory_mode: MemoryMode
    compile: bool
    fuse_qkv: bool
    limit_gib: float | None
    fitted: bool


def make_plan(
    model: Model,
    options: Options,
    size: tuple[int, int, int] | None,
    batch: int = 1,
    ranks: Ranks | None = None,
    teacher_dtype: str | None = None,
    limit_gib: float | None = None,
) -> EnginePlan:
    """Settles the open options for a model on this machine.

    Args:
        model: The model.
        options: The options that were asked for.
        size: Height, width and frames of the largest video; None where nothing says it yet, and
            then memory is not planned.
        batch: Videos denoised together.
        ranks: The processes that share a video, and this one's device; default one.
        teacher_dtype: Precision of the student's teacher, as its manifest says.
        limit_gib: The result of ``memory_limit_gib`` at an earlier time, for a program that has
            loaded other models since; default the limit now.

    Raises:
        UserError: something that was asked for cannot run here, or the memory does not suffice.
    """
    device = device_of(options.device) if ranks is None else ranks.device
    together = 1 if ranks is None else ranks.size
    default = torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = default if options.dtype is None else torch_dtype(options.dtype)
    _check_features(model, options, together)
    kernel = "sdpa"
    if "attention_kernels" in model.features:
        kernel = kernels.choose(options.attention, device, dtype, model.head_dim)
    _check_quantize(options, device)
    if options.offload and device.type != "cuda":
        raise UserError(
            f"offload: needs a CUDA device, and this is {device.type}; leave it out, or use "
            "--device cuda"
        )
    memory_mode = asked = MemoryMode(
        options.quantize,
        options.offload,
        options.one_at_a_time,
        options.tile_vae or _share_tiles(model, together),
        options.text_on_cpu,
        options.stream_text,
    )
    planned = "planned_memory" in model.features
    limit = limit_gib if planned else None
    if limit is None and planned:
        limit = memory_limit_gib(options, device)
    text_dtype = _text_dtype(model, dtype, device, teacher_dtype)
    if limit is not None and size is not None:
        work = Workload(
            model,
            *size,
            batch,
            dtype.itemsize,
            device.type == "cuda",
            together,
            str(text_dtype).removeprefix("torch."),
        )
        kinds = () if _unmerged(options) else possible_quantisations(device)
        own = options.max_memory_gib is None
        memory_mode = choose_memory_mode(
            work,
            limit,
            memory_mode,
            kinds,
            halvable=options.dtype is None,
            free_on=str(device) if own else None,
            swap_gib=swap_gib() if own and device.type == "cpu" else 0.0,
        )
        dtype = torch.bfloat16 if memory_mode.half else dtype
    if not planned and device.type == "cpu":
        _refuse_unplanned(model, dtype, options.quantize)
    moving = memory_mode.offload or memory_mode.quantize == "fp8-storage" or _unmerged(options)
    compiled = options.compile
    if compiled is None:
        compiled = (
            "fast_blocks" in model.features
            and device.type == "cuda"
            and not moving
            and why_unusable("triton") is None
        )
    return EnginePlan(
        options,
        device,
        dtype,
        text_dtype,
        kernel,
        memory_mode,
        compiled,
        # The processes exchange q, k and v one by one.
        options.fuse_qkv
        and "fast_blocks" in model.features
        and not _unmerged(options)
        and together == 1,
        limit,
        replace(memory_mode, frames_at_once=asked.frames_at_once)
        != asked,  # costs nothing to speak of
    )


def _share_tiles(model: Model, ranks: int) -> bool:
    """True if processes share a decode by tiles; other families' first process decodes alone."""
    return ranks > 1 and "streamed_decoding" in model.features


def _refuse_unplanned(model: Model, dtype: torch.dtype, quantize: Quantize) -> None:
    """Refuses a model of a family whose memory is not planned, if its weights alone do not fit."""
    with torch.device("meta"):
        vae = sum(p.numel() for p in model.build_vae().parameters())
        network = model.build_transformer()
    weights = dtype.itemsize * sum(p.numel() for p in network.parameters())
    if quantize != "none":
        layers = [m for m in repeated_blocks(network).modules() if isinstance(m, torch.nn.Linear)]
        weights -= (dtype.itemsize - 1) * sum(layer.weight.numel() for layer in layers)
    needed = (len(model.experts) * weights + 4 * vae) / GIB
    remedy = "close other programs, or try --dtype bf16"
    refuse_too_large(needed, f"{model.path}: its network and VAE", remedy)


def _text_dtype(
    model: Model, dtype: torch.dtype, device: torch.device, teacher_dtype: str | None
) -> torch.dtype:
    """The precision of the text encoder: that of training, or the network's.

    A large encoder whose training nothing tells runs in bfloat16 on a CPU too, as it was published:
    in float32 umT5-XXL would take 23 GB. It does not depend on the memory, since a prompt must have
    the same embedding every time.
    """
    if teacher_dtype is None and device.type == "cpu" and dtype == torch.float32:
        with torch.device("meta"):
            encoder = model.build_text_encoder()
        if encoder_parameters(encoder)[0] > _LARGE_ENCODER:
            return model.text_dtype(torch.bfloat16)
    return model.text_dtype(teacher_dtype or dtype)


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """PyTorch's type for an option's value.

    Raises:
        UserError: the name is none of bf16, fp16, fp32.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    # PyTorch's own names are understood, too: float32, torch.bfloat16.
    long = {str(kind).removeprefix("torch."): kind for kind in dtypes.OPTIONS.values()}
    asked = str(dtype).removeprefix("torch.")
    if asked in long:
        return long[asked]
    if dtype not in dtypes.OPTIONS:
        raise UserError(f"dtype: {dtype!r} is unknown; use {', '.join(sorted(dtypes.OPTIONS))}")
    return dtypes.OPTIONS[dtype]


def device_of(device: str | torch.device | None) -> torch.device:
    """The device meant, by default the GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"device: {device!r} is not a device; use cpu, cuda or cuda:1") from error


def present_device(device: str | None) -> torch.device:
    """The device meant, if it is in this machine.

    Raises:
        UserError: it is not, or there is no such device.
    """
    chosen = device_of(device)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= found:
        raise UserError(
            f"device: {chosen} is not there, because PyTorch sees {found} CUDA devices; use "
            f"{'cpu' if not found else f'cuda:0 to cuda:{found - 1}'}"
        )
    return chosen


def possible_quantisations(device: torch.device) -> tuple[Quantize, ...]:
    """The quantisations that can run here, the best first."""
    kinds: tuple[Quantize, ...] = get_args(Quantize)
    return tuple(k for k in kinds if k != "none" and why_not_quantize(k, device) is None)


def why_not_quantize(kind: Quantize, device: torch.device) -> str | None:
    """The reason why a quantisation cannot run on a device, or None."""
    if kind in ("none", "fp8-storage"):
        return None
    problem = why_unusable("torchao")
    if problem is not None:
        missing = problem == "is not installed"
        remedy = "pip install torchao" if missing else "run `lightx2v-sgmd doctor`"
        return f"needs the package torchao, which {problem}; {remedy}"
    if kind == "fp8":
        if device.type != "cuda" or not torch.cuda.is_available():
            return f"needs a CUDA device, and this is {device.type}; use int8"
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 9):
            have = ".".join(map(str, capability))
            return f"needs compute capability 8.9, this GPU has {have}; use int8"
    return None


def _check_features(model: Model, options: Options, ranks: int) -> None:
    """Refuses options for fast paths that the model's family has not."""
    if options.attention not in ("auto", "sdpa"):
        what = f"attention: {options.attention}"
        require_feature(model, "attention_kernels", what, "auto")
    if options.loras:
        require_feature(model, "loras", "lora: a LoRA file", "weights with it merged")
    if options.max_memory_gib is not None:
        what = "max_memory_gib: planning the memory"
        require_feature(model, "planned_memory", what, "--offload or --one-at-a-time")
    if ranks > 1:
        require_feature(model, "sequence", f"{ranks} processes for a video", "one")


def _check_quantize(options: Options, device: torch.device) -> None:
    if options.quantize not in get_args(Quantize):
        kinds = ", ".join(get_args(Quantize))
        raise UserError(f"quantize: {options.quantize!r} is unknown; use {kinds}")
    reason = why_not_quantize(options.quantize, device)
    if reason is not None:
        raise UserError(f"quantize: {options.quantize} {reason}")
    if options.quantize != "none" and _unmerged(options):
        raise UserError("quantize: LoRA layers stay beside the weights; add --merge-lora")


def _unmerged(options: Options) -> bool:
    return bool(options.loras) and not options.merge_lora


def memory_limit_gib(options: Options, device: torch.device) -> float | None:
    """The memory that may be used: as asked for, or what is available.

    It is None where nothing says how much that is.

    Raises:
        UserError: the limit is not positive.
    """
    if options.max_memory_gib is not None:
        if options.max_memory_gib <= 0:
            raise UserError(
                f"max_memory_gib: {options.max_memory_gib:g} is not positive; give a larger number"
            )
        return options.max_memory_gib
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free / GIB
    available = available_gib()
    return available if isfinite(available) else None


def out_of_memory(
    model: Model, plan: EnginePlan, size: tuple[int, int, int], batch: int, where: str
) -> UserError:
    """The error when memory runs out: how much was needed, and what would fit."""
    if "planned_memory" not in model.features:
        return UserError(
            f"out of memory on {plan.device} ({where}): {batch} x {size[0]}x{size[1]}, {size[2]} "
            "frames; try --batch 1, --offload, --one-at-a-time or --tile-vae, or ask for a smaller "
            "or shorter video"
        )
    work = Workload(
        model,
        *size,
        batch,
        plan.dtype.itemsize,
        plan.device.type == "cuda",
        teacher_dtype=str(plan.text_dtype).removeprefix("torch."),
    )
    stages = needed_gib(work, plan.memory_mode)
    needed = max(stages.values())
    height, width, num_frames = size
    message = (
        f"out of memory on {plan.device} ({where}): {batch} x {height}x{width}, {num_frames} "
        f"frames needs about {needed:.3g} GiB with {plan.memory_mode.flags()}"
    )
    smaller = 0.7 * needed
    try:
        one = replace(work, batch=1)
        memory_mode = choose_memory_mode(
            one, smaller, plan.memory_mode, possible_quantisations(plan.device)
        )
    except UserError:
        remedy = "--batch 1, or a" if batch > 1 else "a"
        return UserError(f"{message}; ask for {remedy} smaller or shorter video")
    flags = ("--batch 1 with " if batch > 1 else "") + memory_mode.flags()
    return UserError(
        f"{message}; use {flags}, which needs only "
        f"{max(needed_gib(one, memory_mode).values()):.3g} GiB"
    )


@contextmanager
def memory_explained(
    model: Model, plan: EnginePlan, size: tuple[int, int, int], batch: int, where: str
) -> Iterator[None]:
    """Turns an out-of-memory error of a block into ``out_of_memory``'s.

    Args:
        model: The student's model.
        plan: The settled options.
        size: Height, width and number of frames of a video.
        batch: Number of videos.
        where: The work of the block, for the message: ``denoising``.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # On a CPU PyTorch has no class of its own for it.
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            if "not enough memory" not in str(error) and "can't allocate" not in str(error):
                raise
        raise out_of_memory(model, plan, size, batch, where) from error
