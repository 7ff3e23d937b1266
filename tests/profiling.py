"""Memory, as torch's profiler sees it."""

from tools.peaks import live_bytes, peak_growth

__all__ = ["live_bytes", "peak_growth"]
