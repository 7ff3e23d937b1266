"""The transformer as a plan wants it: loaded, merged, fused, quantised, offloaded, compiled."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from infer.lora import add_loras
from infer.options import Plan
from infer.products import fuse_products
from infer.together import share_tokens
from lightx2v_sgmd import attention as kernels
from lightx2v_sgmd.caches import cache_folder
from lightx2v_sgmd.console import note
from lightx2v_sgmd.disk import nearest_existing
from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.models import compiling
from lightx2v_sgmd.models.blocks import fuse_passes
from lightx2v_sgmd.models.wan import WanModel
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.quiet import no_library_bars


def load_network(model: WanModel, plan: Plan, ranks: Ranks) -> Any:
    """Loads the transformer and prepares it; nothing of it needs gradients.

    With several ranks it is one network, whose tokens they share.

    Raises:
        UserError: a part of the plan cannot run here.
    """
    if plan.compile:
        check_compiler(plan.device)
    # Quantising and offloading start from the main memory: the device may not hold it all.
    straight = plan.way.quantize == "none" and not plan.way.offload
    with no_library_bars():
        network = model.load_transformer(plan.dtype)
    add_loras(network, plan.options.loras, plan.options.merge_lora)
    network.eval().requires_grad_(False)
    if straight:
        network.to(plan.device)
    if plan.fuse_qkv:
        fuse_qkv(network)
    fuse_passes(network)
    kernels.apply(network, plan.attention)
    share_tokens(network, ranks)
    if plan.way.quantize in ("fp8", "int8"):
        quantize(network, plan.way.quantize, plan.device)
    elif plan.way.quantize == "fp8-storage":
        store_in_fp8(network, plan.dtype)
    elif not plan.options.loras or plan.options.merge_lora:
        fuse_products(network, plan.device, plan.compile)
    if plan.compile:
        # What ranks tell one another inside a block cannot be compiled.
        compile_blocks(network, plan.options.compile_cache, ranks.first, whole=ranks.size == 1)
    if plan.way.offload:
        offload(network, plan.device)
    elif not straight:
        network.to(plan.device)
    return network


def fuse_qkv(network: Any) -> None:
    """One matrix product for query, key and value, and one for key and value of the text.

    diffusers keeps the separate matrices beside the fused ones; here they go, or a 14B network
    would need 10 GB more.
    """
    network.fuse_qkv_projections()
    for block in network.blocks:
        for attention, parts in (
            (block.attn1, ("to_q", "to_k", "to_v")),
            (block.attn2, ("to_k", "to_v")),
        ):
            for part in parts:
                delattr(attention, part)


def quantize(network: Any, kind: str, device: torch.device) -> None:
    """Quantises the matrices of the blocks with torchao, one block at a time on the device.

    ``fp8``: weights and, as they come, activations, one scale per row. ``int8``: weights only, one
    scale per row.
    """
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
        quantize_,
    )

    if kind == "fp8":
        config: Any = Float8DynamicActivationFloat8WeightConfig(
            granularity=PerRow(), set_inductor_config=False
        )
    else:
        config = Int8WeightOnlyConfig(set_inductor_config=False)
    for block in network.blocks:
        quantize_(block.to(device), config)


def store_in_fp8(network: Any, compute_dtype: torch.dtype) -> None:
    """Stores the blocks' matrices in fp8 and casts each layer back while it computes."""
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(
        network,
        storage_dtype=torch.float8_e4m3fn,
        compute_dtype=compute_dtype,
        skip_modules_pattern=tuple(network._skip_layerwise_casting_patterns) + ("^proj_out$",),
    )


def offload(network: Any, device: torch.device) -> None:
    """Keeps the blocks in the main memory; a stream fetches the next one while one computes."""
    from diffusers.hooks import apply_group_offloading

    stream = device.type == "cuda"
    apply_group_offloading(
        network,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        non_blocking=stream,
        use_stream=stream,
        record_stream=stream,
    )


def compile_blocks(
    network: Any, cache: Path | None, reports: bool = True, whole: bool = True
) -> None:
    """Compiles the block that the network repeats, for videos of any size and number.

    Kernels stay on disk, so that the next process starts warm.

    Args:
        network: ``WanTransformer3DModel``.
        cache: The folder for kernels. None: the one that the environment names, or one in the
            user's cache.
        reports: True if this process prints what the compiler does.
        whole: False if a block may be compiled in several pieces.
    """
    if cache is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    elif "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = _kernel_folder()
    compiling.compile_blocks(network, partial(note, quiet=not reports), whole)


def _kernel_folder() -> str:
    """The user's cache; a new folder for this process where there is none that can be written."""
    folder = cache_folder("compiled")
    if folder is not None and os.access(nearest_existing(folder), os.W_OK):
        return str(folder)
    return tempfile.mkdtemp(prefix="lightx2v-sgmd-")


def check_compiler(device: torch.device) -> None:
    """Raises unless ``torch.compile`` has what it needs on a device.

    Raises:
        UserError: it has not.
    """
    if device.type == "cpu" and not (
        shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    ):
        raise UserError(
            "compile: needs a C++ compiler on a CPU, and there is none; install g++ "
            "(`lightx2v-sgmd doctor` names the command), or leave --compile out"
        )
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError("compile: needs Triton on a GPU; pip install triton, or --no-compile")
