"""The comparison of forward passes, at the bundled model's size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tools.benchmarks import bench_forward


def test_rows_of_several_sizes_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, threads = tmp_path / "forward.json", torch.get_num_threads()
    for frames in ("5", "1", "5"):
        options = ["--shape", "sprites", "--layers", "1", "--size", "32", "32", frames]
        monkeypatch.setattr(sys, "argv", ["", *options, "--rounds", "2", "--out", str(out)])
        try:
            bench_forward.main()
        finally:
            torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    assert [row["tokens"] for row in report["rows"]] == [16, 32]
    for row in report["rows"]:
        assert row["engine"]["difference"] < 1e-6
        assert len(row["engine"]["ratios"]) == 2 and row["stock"]["ratio"] == 1
    page = out.with_suffix(".md").read_text()
    assert (
        page.count("| engine |") == 2 and "python -m tools.benchmarks.bench_forward --shape" in page
    )
