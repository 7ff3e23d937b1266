"""The transformer as a plan wants it: loaded, merged, fused, quantised, offloaded, compiled."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from infer.engine_plan import EnginePlan
from infer.multi_gpu import share_tokens
from infer.network import blocks
from infer.network.fused_products import fuse_products
from infer.network.load_progress import network_bar
from infer.network.lora import add_loras
from infer.network.offload import HostWeights
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.lora.updates import LoraUpdates
from lightx2v_sgmd.files.weighted_lora import WeightedLora
from lightx2v_sgmd.networks import attention as kernels
from lightx2v_sgmd.networks import compiling
from lightx2v_sgmd.networks.fused_blocks import fuse_passes
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.caches import cache_folder
from lightx2v_sgmd.system.compilers import compiler_problem
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.disk import nearest_existing
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.quiet import no_library_bars


def load_network(
    model: Model, plan: EnginePlan, ranks: Ranks, quiet: bool = True, expert: int | None = None
) -> Any:
    """Loads the transformer and prepares it; nothing of it needs gradients.

    With several ranks it is one network, whose tokens they share.

    Args:
        model: The model.
        plan: The engine's settings.
        ranks: The processes that share a video.
        quiet: No progress bar.
        expert: The expert that the model is, of a model with two; LoRAs of the other are left out.

    Raises:
        UserError: a part of the plan cannot run here.
    """
    if plan.compile:
        check_compiler(plan.device)
    loras = [lora for lora in plan.options.loras if expert is None or lora.expert == expert]
    network = _loaded(model, plan, loras, quiet)
    unmerged = loras and not plan.options.merge_lora
    if unmerged:
        add_loras(network, loras, plan.options.skip_image_layers)
        if not plan.memory_mode.offload:
            network.to(plan.device)
    network.eval().requires_grad_(False)
    if "fast_blocks" in model.features:
        fuse_passes(network)
    if "attention_kernels" in model.features:
        kernels.apply(network, plan.attention)
    share_tokens(network, ranks)
    if "fast_blocks" in model.features and plan.memory_mode.quantize == "none" and not unmerged:
        fuse_products(network, plan.device, plan.compile)
    if plan.compile:
        # The ranks' communication inside a block cannot be compiled.
        compile_blocks(network, plan.options.compile_cache, ranks.first, whole=ranks.size == 1)
    if plan.memory_mode.offload:
        offload(network, plan.device)
    return network


def _loaded(model: Model, plan: EnginePlan, loras: Sequence[WeightedLora], quiet: bool) -> Any:
    """The transformer, each block merged, fused and quantised as soon as it is there.

    Blocks that will be offloaded never all meet on the device: those that are quantised come there
    one by one and go to the main memory.
    """
    options, kind = plan.options, plan.memory_mode.quantize
    updates = None
    if options.merge_lora and loras:
        updates = LoraUpdates(loras, model.transformer_shapes(), options.skip_image_layers)
    on_device = kind in ("fp8", "int8") or not plan.memory_mode.offload
    where = plan.device if on_device else torch.device("cpu")
    skipped: tuple[str, ...] = ()

    def prepare(name: str, part: Any) -> None:
        nonlocal skipped
        if not name:  # the network, which comes before its blocks
            skipped = tuple(part._skip_layerwise_casting_patterns or ())
        if updates is not None:
            updates.merge(name, part)
        if name:
            if plan.fuse_qkv:
                blocks.fuse_qkv(part)
            if kind in ("fp8", "int8"):
                blocks.quantize(part, kind)
            elif kind == "fp8-storage":
                blocks.store_in_fp8(part, plan.dtype, skipped)
            if plan.memory_mode.offload:
                part.to("cpu")
                # diffusers takes pinned weights as they are and would copy others.
                HostWeights(part).to_host()
        bar.advance()

    with no_library_bars(), network_bar(model, quiet) as bar:
        return model.load_transformer(plan.dtype, where, prepare)


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
    """Compiles the blocks that the network repeats, for videos of any size and number.

    Kernels stay on disk, so that the next process starts warm.

    Args:
        network: The network.
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
        UserError: something is missing.
    """
    if problem := compiler_problem(device):
        raise UserError(f"compile: needs {problem}, or use --no-compile")
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError("compile: Triton does not support this GPU; use --no-compile")
