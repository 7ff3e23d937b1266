"""Joins the processes, builds networks in shards, and makes DeepSpeed's engines.

This folder is the only one that imports deepspeed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.parallel.base import StrategySettings
from lightx2v_sgmd.parallel.precision import keep_in_float32, of_mixed_precision
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.parallel.rendezvous import join
from lightx2v_sgmd.parallel.zero3.builds import guarded_builds
from lightx2v_sgmd.parallel.zero3.nvme import BLOCK, BUFFERS, SUB_GROUP, check_offload_dir
from lightx2v_sgmd.system.compilers import check_compiler
from lightx2v_sgmd.system.errors import UserError, first_line
from lightx2v_sgmd.system.optional_packages import prepare_libraries

_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ALONE = "LIGHTX2V_SGMD_ALONE"


def check_offload(directory: Path, device: torch.device) -> None:
    """Checks that ``parallel.offload: nvme`` can work here; see ``nvme.check_offload_dir``."""
    try:
        from deepspeed.git_version_info import installed_ops
    except Exception:  # a broken package fails in any way
        return  # ``connect`` will report it
    check_offload_dir(directory, bool(installed_ops.get("async_io")), device)


def connect(device: torch.device, timeout_minutes: float | None = None) -> Ranks:
    """Joins the run's processes, or makes a run of one if no launcher started this process.

    Raises:
        UserError: DeepSpeed is missing, or the compiler that it needs on a CPU.
        RunError: not all processes have joined in time.
    """
    try:
        import deepspeed
    except Exception as error:  # a broken package fails in any way
        missing = isinstance(error, ModuleNotFoundError) and error.name == "deepspeed"
        problem = "" if missing else f", which does not import: {first_line(error)}"
        raise UserError(
            f"parallel.strategy: zero3 needs DeepSpeed{problem}; install it (pip install "
            "'lightx2v-sgmd[zero3]') or use parallel.strategy=local"
        ) from error
    if device.type == "cpu":
        check_compiler()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by the names that torch is about to drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if "RANK" not in os.environ:
        # Port 0: any that is free; nobody else needs to know it.
        os.environ.update(zip(_LAUNCH, ("0", "0", "1", "127.0.0.1", "0"), strict=True))
        os.environ[_ALONE] = "1"
    backend = "nccl" if device.type == "cuda" else "gloo"
    if timeout_minutes is not None and not dist.is_initialized():
        join(backend, timeout_minutes)
    with contextlib.redirect_stdout(sys.stderr), guarded_builds():
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def disconnect() -> None:
    """Leaves the process group; all processes leave together."""
    if dist.is_initialized():
        import deepspeed

        dist.barrier()
        deepspeed.comm.destroy_process_group()
    if os.environ.pop(_ALONE, None):
        for key in _LAUNCH:
            os.environ.pop(key, None)


def deepspeed_config(
    settings: StrategySettings, trained: bool, on_gpu: bool, swap_folder: Path | None
) -> dict[str, Any]:
    """Makes the configuration of one network's engine.

    Args:
        settings: The job's settings.
        trained: True if the network has an optimizer.
        on_gpu: True if the run computes on GPUs.
        swap_folder: Folder for the optimizer's state, if that is in files.
    """
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "memory_efficient_linear": False,  # see ``_save_no_gathered_weights``
    }
    host = {"device": "cpu", "pin_memory": on_gpu}
    if trained and settings.offload in ("optimizer", "all"):
        zero["offload_optimizer"] = host
    if trained and swap_folder is not None:
        files = {"device": "nvme", "nvme_path": str(swap_folder), "buffer_count": BUFFERS}
        zero |= {"offload_optimizer": files, "sub_group_size": SUB_GROUP}
    if settings.offload in ("all", "nvme"):
        zero["offload_param"] = host
    return {
        "aio": {"block_size": BLOCK},
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": settings.accumulation,
        "gradient_clipping": settings.clip,
        "zero_optimization": zero,
        # torch's AdamW: DeepSpeed's own would be compiled on first use.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": settings.dtype == torch.bfloat16},
        # For several micro-batches; a single one's gradient is as exact as its backward pass.
        "data_types": {"grad_accum_dtype": "fp32" if settings.accumulation > 1 else None},
        "steps_per_print": sys.maxsize,
    }


def make_engine(
    network: nn.Module, optimizer: torch.optim.Optimizer | None, config: dict[str, Any]
) -> Any:
    """Makes a network's engine.

    Args:
        network: The network, in shards, or small enough to be cut into shards now.
        optimizer: The network's optimizer, with a group of weights for each precision; None for
            a frozen network.
        config: The configuration, from ``deepspeed_config``.
    """
    import deepspeed
    from deepspeed.runtime.zero import stage3

    _import_muon_uncompiled()
    _save_no_gathered_weights(network)
    usual = stage3.DeepSpeedZeroOptimizer_Stage3
    stage3.DeepSpeedZeroOptimizer_Stage3 = of_mixed_precision(usual)
    try:
        with contextlib.redirect_stdout(sys.stderr), guarded_builds():
            engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config)
    finally:
        stage3.DeepSpeedZeroOptimizer_Stage3 = usual
    return engine


def _import_muon_uncompiled() -> None:
    """Imports DeepSpeed's Muon optimizer, as every engine does, without PyTorch's compiler.

    Nobody uses Muon here, but to mark its functions for compiling imports the compiler, which takes
    three seconds of every start.
    """
    from deepspeed.runtime import compiler

    usual = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = usual


def _save_no_gathered_weights(network: nn.Module) -> None:
    """Lets linear layers save the sharded weight for the backward pass, not a gathered copy.

    DeepSpeed would do so for the whole process, by another ``torch.nn.functional.linear``, which
    rounds before it adds the bias.
    """
    from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3

    layers: list[Any] = [each for each in network.modules() if type(each) is nn.Linear]
    for layer in layers:
        layer.forward = partial(_linear, layer, LinearFunctionForZeroStage3.apply)


def _linear(layer: nn.Linear, function: Callable[..., Tensor], x: Tensor) -> Tensor:
    # As in torch: a contiguous input is multiplied and shifted in one operation.
    rows = x.flatten(0, -2) if x.is_contiguous() else x
    return function(rows, layer.weight, layer.bias).view(*x.shape[:-1], layer.out_features)


def build_sharded(model: Model, config: Mapping[str, Any]) -> Any:
    """Builds the network with random weights, of which each rank holds its shard."""
    import deepspeed

    prepare_libraries()
    from accelerate import init_empty_weights

    # Inside Init every new tensor takes the weights' precision, the rotary tables included: those
    # come from a network built outside. It comes first, for Init also replaces functions of torch,
    # and modules that are first imported meanwhile would see them.
    with init_empty_weights(include_buffers=False):
        exact = dict(model.build_transformer().named_buffers())
    with deepspeed.zero.Init(config_dict_or_path=dict(config)):
        network = model.build_transformer()
    for name, buffer in network.named_buffers():
        owner, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(owner), attribute, exact[name].to(buffer.device))
    if config["bf16"]["enabled"]:
        keep_in_float32(network)
    return network


def read_constants(network: Any, whole: WholeTensors) -> dict[str, tuple[int, ...]]:
    """Reads the constant tables that are among a network's weights; returns their shapes.

    Args:
        network: The network; every rank holds its tables whole.
        whole: The weights of the teacher.
    """
    known = network.state_dict().keys()
    tables = {name: buffer for name, buffer in network.named_buffers() if name in known}
    shapes = {name: tuple(buffer.shape) for name, buffer in tables.items()}
    for name, info in whole.header.tensors.items():
        if shapes.get(name) == info.shape:  # what does not fit is refused by its keys
            tables[name].copy_(whole.tensor(name))
    return shapes
