from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tools import bench_infer


def test_the_report_adds_up(
    shared_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "--batches 1 2 --repetitions 2 --warmup 1 --device cpu --bounds --out".split()
    weights = ["bench_infer", "--weights", str(shared_student)]
    monkeypatch.setattr(sys, "argv", [*weights, *options, str(tmp_path)])
    bench_infer.main()
    report = json.loads((tmp_path / "inference.json").read_text())
    assert (tmp_path / "inference.png").stat().st_size > 1000
    one, two = report["results"]
    assert (one["batch"], two["batch"]) == (1, 2)
    for result in (one, two):
        for row in result["rows"]:
            inside = row["inside_ours"]
            assert 0 < inside["denoise"] <= row["timings"]["denoise"]
            assert 0 < inside["decode"] <= row["timings"]["decode"]
            assert sum(row["timings"].values()) <= row["ours"]
            assert sum(row["inside_stock"].values()) <= row["stock"]
    assert two["work"]["forward"]["flops"] == 2 * one["work"]["forward"]["flops"]
    assert two["work"]["decode"]["flops"] == 2 * one["work"]["decode"]["flops"]
    assert all(limit > 0 for limit in report["limits"].values())
