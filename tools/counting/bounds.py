"""The bounds of a stage of the engine: arithmetic, bandwidth or launching operations.

The machine's own limits are measured in the same run: a large matrix product, a large copy, and
the time of an operation on four numbers. ``tools.benchmarks.bench_infer`` writes both sides into
its report.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lightx2v_sgmd.families.wan.forward import velocity


def median_seconds(work: Callable[[], Any], device: torch.device, repetitions: int = 15) -> float:
    """The median time of a call, the GPU's work included, after three to warm up."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return statistics.median([once() for _ in range(3 + repetitions)][3:])


def machine_limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of a matrix product, bytes/s of a copy, seconds of an operation on four numbers."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    x = torch.randn(1 << 26, device=device)
    y = torch.empty_like(x)
    tiny = torch.randn(4, device=device)
    many = 1000
    return {
        "flops": 2 * side**3 / median_seconds(lambda: a @ a, device),
        "bandwidth": 2 * x.numel() * 4 / median_seconds(lambda: y.copy_(x), device),
        "launch": median_seconds(lambda: [tiny + tiny for _ in range(many)], device) / many,
    }


@torch.no_grad()
def stage_work(student: Any, prompt: str, count: int, size: tuple[int, int, int]) -> dict[str, Any]:
    """FLOPs, operations and seconds of one forward and of the decode of ``count`` videos."""
    text = student.model.conditioning(student.encode([prompt] * count))["text"]
    network = student.loaded.network_for(text.shape[1])
    text = text.to(student.device)
    x_t = torch.randn(count, *student.latent_shape(*size), device=student.device)
    sigma = torch.full((count,), 0.9, device=student.device)
    work: dict[str, Callable[[], Any]] = {
        "forward": lambda: velocity(network, x_t, sigma, text),
        "decode": lambda: [list(chunks) for chunks in student.decode_each(x_t)],
    }
    found = {}
    for stage, run in work.items():
        run()
        with FlopCounterMode(display=False) as counter:
            run()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run()
        found[stage] = {
            "flops": counter.get_total_flops(),
            "operations": sum(e.count for e in seen.key_averages() if e.key.startswith("aten::")),
            "seconds": median_seconds(run, student.device),
        }
    return found


def bound(stage: dict[str, float], limits: dict[str, float]) -> dict[str, float]:
    """The least time by arithmetic and by launching, as shares of the time that it took."""
    return {
        "arithmetic": stage["flops"] / limits["flops"] / stage["seconds"],
        "launching": stage["operations"] * limits["launch"] / stage["seconds"],
    }
