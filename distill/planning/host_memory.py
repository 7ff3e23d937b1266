"""Compares what a job needs of the main memory with what this machine has, before it starts."""

from __future__ import annotations

import os
from typing import Final

import torch

from distill.planning.model_meter import ModelMeter
from distill.planning.rank_memory import least_bytes, rank_memory, untouched_bytes
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.host_memory import GIB, available_gib, refuse_too_large

_SURE: Final = 0.1
"""The share of the available memory below which a job's weights need no closer look."""


def check_host_memory(job: Job, model: Model, device: torch.device, ranks: int) -> None:
    """Refuses a job for which this machine's main memory is too small.

    On a CPU all of the job's memory is main memory, for each rank of this machine; the text encoder
    is read block by block if it does not fit, and so does not count. On a GPU what is offloaded is.

    Args:
        job: The job.
        model: The job's opened teacher.
        device: The device of a rank.
        ranks: Number of all ranks.

    Raises:
        UserError: the memory does not suffice.
    """
    here = min(ranks, int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
    on_gpu = device.type != "cpu"
    if on_gpu and job.parallel.offload == "none":
        return
    meter = ModelMeter(model, on_gpu=on_gpu)
    untouched = untouched_bytes(job, meter)
    # The weights alone are counted in no time; activations are metered only if it matters.
    least = least_bytes(job, meter, ranks) - untouched
    if not on_gpu and here * least / GIB < _SURE * available_gib():
        return
    memory = rank_memory(job, meter, ranks)
    needed = sum(memory.host.values())
    if not on_gpu:
        needed += sum(memory.always.values()) - untouched
        needed += max(sum(parts.values()) for parts in memory.phases.values())
    refuse_too_large(
        here * needed / GIB,
        f"{here} process{'es' if here > 1 else ''} of this job",
        "use smaller videos or batches, student.train=lora, or a machine with more memory "
        "(`lightx2v-sgmd plan` says what takes how much)",
    )
