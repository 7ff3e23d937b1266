"""The comparison of forward passes, at the bundled model's size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tools.benchmarks import bench_forward, machines

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_page_is_that_of_the_rows() -> None:
    """With a table for each processor that measured."""
    folder = ROOT / "docs" / "benchmarks"
    report = json.loads((folder / "forward.json").read_text(encoding="utf-8"))
    text = (folder / "forward.md").read_text(encoding="utf-8")
    assert text == bench_forward.page(report)
    processors = {row["machine"]["processor"] for row in report["rows"]}
    assert text.count("\n## ") == len(processors) > 1


def test_an_older_file_has_its_machine_at_its_top(tmp_path: Path) -> None:
    out = tmp_path / "forward.json"
    assert bench_forward.read_rows(out) == []
    row = {"tokens": 16, "size": [32, 32, 1], "threads": 1}
    newer = {**row, "machine": {"processor": "B"}}
    out.write_text(json.dumps({"machine": {"processor": "A"}, "rows": [row, newer]}))
    kinds = [bench_forward.kind_of(each) for each in bench_forward.read_rows(out)]
    assert kinds == [("A", 16, 32, 32, 1, 1), ("B", 16, 32, 32, 1, 1)]


def test_rows_of_several_sizes_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, threads = tmp_path / "forward.json", torch.get_num_threads()
    for processor, frames in (("A", "5"), ("A", "1"), ("B", "5"), ("A", "5")):
        monkeypatch.setattr(machines, "processor", lambda processor=processor: processor)
        options = ["--shape", "sprites", "--layers", "1", "--size", "32", "32", frames]
        monkeypatch.setattr(sys, "argv", ["", *options, "--rounds", "2", "--out", str(out)])
        try:
            bench_forward.main()
        finally:
            torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    found = [(row["machine"]["processor"], row["tokens"]) for row in report["rows"]]
    assert found == [("A", 16), ("A", 32), ("B", 32)]
    for row in report["rows"]:
        assert row["engine"]["difference"] < 1e-6
        assert len(row["engine"]["ratios"]) == 2 and row["stock"]["ratio"] == 1
    page = out.with_suffix(".md").read_text()
    assert page.index("## A") < page.index("## B") < page.rindex("| engine |")
    assert (
        page.count("| engine |") == 3 and "python -m tools.benchmarks.bench_forward --shape" in page
    )
