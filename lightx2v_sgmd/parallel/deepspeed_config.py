"""What DeepSpeed is told of a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from lightx2v_sgmd.parallel.base import Settings
from lightx2v_sgmd.parallel.nvme import BLOCK, BUFFERS, SUB_GROUP


def deepspeed_config(
    settings: Settings, trained: bool, on_gpu: bool, swap_folder: Path | None
) -> dict[str, Any]:
    """The configuration of one network's engine.

    Args:
        settings: Of the job.
        trained: Whether the network has an optimizer.
        on_gpu: Where the run computes.
        swap_folder: Takes the optimizer's state, if it is kept in files.
    """
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "memory_efficient_linear": False,  # ``zero3`` has its own
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
        # Of several micro-batches; a single one's gradient is as exact as its backward pass.
        "data_types": {"grad_accum_dtype": "fp32" if settings.accumulation > 1 else None},
        "steps_per_print": sys.maxsize,
    }
