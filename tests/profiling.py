"""Memory, as torch's profiler sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def peak_growth(work: Callable[[], Any], at_end: bool = False) -> int:
    """By how many bytes what torch's CPU allocator holds grew at most, or at the end."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert peak > 0, "the profiler saw no memory"
    return live if at_end else peak
