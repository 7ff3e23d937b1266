"""Freed memory goes back to the system."""

from __future__ import annotations

import pytest

from weights.io import heap


def test_freed_memory_is_given_back_once_a_loop_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 300, 700, 120, 500, 700, 130])
    trimmed: list[int] = []
    monkeypatch.setattr(heap, "_malloc_trim", lambda: lambda pad: trimmed.append(pad) or 1)
    monkeypatch.setattr(heap, "anonymous_bytes", lambda: next(sizes) * 2**20)
    trimmer = heap.HeapTrimmer()  # 100 MiB
    trimmer.trim()  # 300: no need
    trimmer.trim()  # 700: grown by 600; 120 are left
    assert trimmed == [0]
    trimmer.trim()  # 500: 380 more
    trimmer.trim()  # 700: 580 more; 130 are left
    assert trimmed == [0, 0]
