"""Records what the machine has: the GPU and its driver, packages, kernels, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from typing import Any

from tools.benchmarks.machines import processor
from tools.gpu_check.report import NotHere, Row, Step

PACKAGES = (
    "torch",
    "triton",
    "nvidia-cudnn-cu13",
    "nvidia-cudnn-cu12",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "pydantic",
    "ftfy",
    "torchao",
    "peft",
    "deepspeed",
    "pytest",
    "flash-attn",
    "flash-attn-3",
    "fa3-fwd",
    "flash-attn-4",
    "xformers",
    "sageattention",
    "imageio-ffmpeg",
)


def run(_: Any, step: Step) -> None:
    """Fills the step."""
    step.row("system", 2, system)
    step.row("packages", 1, packages)
    step.row("gpu", 5, gpu)
    step.row("doctor", 15, doctor)


def system(row: Row) -> None:
    """Python, processor, memory."""
    row |= {"python": platform.python_version(), "system": platform.platform()}
    row |= {"cores": len(os.sched_getaffinity(0)), "processor": processor()}
    row["memory_gib"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    row["ffmpeg"] = shutil.which("ffmpeg") or "not on the PATH"


def packages(row: Row) -> None:
    """The versions of what this project uses."""
    for name in PACKAGES:
        try:
            row[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            row[name] = "missing"


def gpu(row: Row) -> None:
    """Records what PyTorch and the driver say of the GPU."""
    import torch

    if not torch.cuda.is_available():
        raise NotHere("PyTorch sees no GPU")
    properties = torch.cuda.get_device_properties(0)
    row |= {
        "name": properties.name,
        "memory_total_gib": properties.total_memory / 2**30,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    fields = "driver_version,clocks.max.sm,power.limit,temperature.gpu,memory.used,mig.mode.current"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        row["nvidia_smi"] = dict(
            zip(fields.split(","), done.stdout.strip().split(", "), strict=False)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        row["nvidia_smi"] = f"does not answer: {error}"


def doctor(row: Row) -> None:
    """Records what ``lightx2v-sgmd doctor`` reports."""
    from lightx2v_sgmd.cli.doctor import checks

    found = checks.run().to_dict()
    row |= {"ready": found["ok"], "attention": found["attention"], "checks": found["checks"]}
