"""Memory, as torch's profiler sees it."""

from tools.benchmarks.peaks import live_bytes, peak_growth

__all__ = ["live_bytes", "peak_growth"]
