"""The most memory that work takes: on a GPU, and on a CPU as torch and as the system see it."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightx2v_sgmd.system.host_memory import GIB


def live_bytes() -> int:
    """Bytes of all CPU tensors that Python holds, each storage once."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        # Not ``isinstance``: a compiler's stand-ins for tensors have no memory.
        if type(item) not in (torch.Tensor, torch.nn.Parameter) or item.layout != torch.strided:
            continue
        if item.device.type == "cpu":
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak_growth(work: Callable[[], Any], at_end: bool = False) -> int:
    """The growth in bytes of torch's CPU allocator: the most while it worked, or at the end."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    live, peak = memory_growth(profile)
    assert peak > 0, "the profiler saw no memory"
    return live if at_end else peak


def memory_growth(profile: Any) -> tuple[int, int]:
    """Bytes by which a profile's memory grew: at its end, and at most."""
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return live, peak


@contextmanager
def gpu_peak(device: torch.device, found: dict[str, Any], key: str) -> Iterator[None]:
    """The most that PyTorch held on a GPU during a block, in GiB, under a key of ``found``."""
    torch.cuda.reset_peak_memory_stats(device)
    yield
    found[key] = torch.cuda.max_memory_allocated(device) / GIB


@contextmanager
def memory_peak(device: torch.device, result: dict[str, float]) -> Iterator[None]:
    """The most memory in use during a block, in GiB: the GPU's, or this process's."""
    if device.type == "cuda":
        with gpu_peak(device, result, "gib"):
            yield
        return
    done, highest = threading.Event(), [0]

    def sample() -> None:
        while not done.wait(0.002):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            highest[0] = max(highest[0], pages)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        result["gib"] = highest[0] * os.sysconf("SC_PAGE_SIZE") / GIB
