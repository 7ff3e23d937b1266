"""The kernels that take the time of a call, by kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from torch.profiler import ProfilerActivity, profile

from tools.gpu_check.context import Context
from tools.gpu_check.report import Row

KINDS: Final = {
    "attention": ("sdpa", "flash", "fmha", "attention", "softmax"),
    "convolution": ("conv", "cudnn", "implicit"),
    "product": ("gemm", "nvjet", "cutlass", "matmul", "xmma", "addmm", "::mm", "bmm", "cublas"),
    "copy": ("memcpy", "memset"),
}
"""Words in a kernel's name, by kind: the first that fits counts, and others are elementwise."""
SHOWN = 12


def kind_of(name: str) -> str:
    """The kind of a kernel, by its name."""
    low = name.lower()
    if low.startswith("triton_") and not low.startswith("triton_tem"):
        return "elementwise"  # named after all that is fused there, a product's bias for one
    return next(
        (kind for kind, words in KINDS.items() if any(word in low for word in words)),
        "elementwise",
    )


def kernel_table(context: Context, work: Callable[[], Any]) -> Row:
    """Profiles one call after one to warm up.

    Returns:
        ``kernels_ms`` by kind, with ``idle`` for time in which no kernel ran, ``launches``, and
        ``slowest``: milliseconds, calls and name of those that take most.
    """
    work()
    context.sync()
    activity = ProfilerActivity.CUDA if context.cuda else ProfilerActivity.CPU
    start = time.perf_counter()
    with profile(activities=[activity]) as seen:
        start = time.perf_counter()
        work()
        context.sync()
        elapsed_ms = 1e3 * (time.perf_counter() - start)
    kinds: dict[str, float] = {}
    slowest, launches = [], 0
    for event in seen.key_averages():
        time_us = event.self_device_time_total if context.cuda else event.self_cpu_time_total
        if time_us <= 0:
            continue
        kind = kind_of(event.key)
        kinds[kind] = kinds.get(kind, 0.0) + time_us / 1e3
        launches += event.count
        slowest.append([round(time_us / 1e3, 3), event.count, event.key[:90]])
    kinds["idle"] = max(elapsed_ms - sum(kinds.values()), 0.0)
    return {
        "kernels_ms": kinds,
        "launches": launches,
        "slowest": sorted(slowest, reverse=True)[:SHOWN],
    }
