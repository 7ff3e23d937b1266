from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tools.benchmarks import bench_infer, inference_rows


def bench(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str, code: int = 0) -> dict[str, Any]:
    command = ["bench_infer", *words, "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    assert bench_infer.main() == code
    found: dict[str, Any] = json.loads((out / "inference.json").read_text())
    return found


SHORT = ("--repetitions", "2", "--warmup", "1")


@pytest.mark.slow
def test_the_report_adds_up(
    shared_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--weights", str(shared_student), "--batches", "1", "2", "--bounds", *SHORT)
    report = bench(monkeypatch, tmp_path, *words)
    assert (tmp_path / "inference.png").stat().st_size > 1000
    one, two = report["results"]
    assert (one["batch"], two["batch"]) == (1, 2)
    for result in (one, two):
        assert result["variant"] == {"attention": "sdpa", "quantize": "none", "compiled": False}
        for row in result["rows"]:
            inside = row["inside_ours"]
            assert 0 < inside["denoise"] <= row["timings"]["denoise"]
            assert 0 < inside["decode"] <= row["timings"]["decode"]
            assert sum(row["timings"].values()) <= row["ours"]
            assert sum(row["inside_stock"].values()) <= row["stock"]
        assert all(gib > 0 for gib in result["peak_gib"].values())
    assert two["work"]["forward"]["flops"] == 2 * one["work"]["forward"]["flops"]
    assert two["work"]["decode"]["flops"] == 2 * one["work"]["decode"]["flops"]
    assert all(limit > 0 for limit in report["limits"].values())


@pytest.mark.slow
def test_several_variants_of_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels and quantisations are rows; what cannot run here says why; nothing is written."""
    words = ("--random", "sprites", "--layers", "1", "--batches", "1", "--ours-only", *SHORT)
    kinds = ("--attention", "auto", "sdpa-flash", "flash3", "--quantize", "none", "fp8-storage")
    report = bench(monkeypatch, tmp_path, *words, *kinds)
    found = {bench_infer.label_of(row): row for row in report["results"]}
    assert "flash3 cannot run here" in found["flash3, as it comes"]["unavailable"]
    for label in ("sdpa, eager", "sdpa-flash, eager", "sdpa, fp8-storage, eager"):
        assert found[label]["seconds"]["ours"] > 0 and "stock" not in found[label]["seconds"]
    half = found["sdpa, fp8-storage, eager"]["peak_gib"]["ours"]
    assert half < found["sdpa, eager"]["peak_gib"]["ours"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["inference.json", "inference.png"]


@pytest.mark.slow
def test_what_compiles_has_an_eager_row_beside_it(
    shared_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def student(self: inference_rows.Source, **options: Any) -> Any:
        """One that says it is compiled, and is not: compiling takes long."""
        compiled.append(options["compile"])
        found = real(self, **{**options, "compile": False})
        if options["compile"] is None:
            found.plan = replace(found.plan, compile=True)
        return found

    real = inference_rows.Source.student
    monkeypatch.setattr(inference_rows.Source, "student", student)
    words = ("--weights", str(shared_student), "--batches", "1", "--ours-only", *SHORT)
    report = bench(monkeypatch, tmp_path, *words)
    assert compiled == [None, False]
    assert [row["variant"]["compiled"] for row in report["results"]] == [True, False]


@pytest.mark.slow
def test_rows_are_written_one_by_one_and_the_budget_is_kept(
    shared_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--weights", str(shared_student), "--batches", "1", "2", "--ours-only", *SHORT)
    real, seen = bench_infer.one_row, []

    def fails_at_two(sides: Any, count: int, *rest: Any) -> Any:
        if count == 2:
            seen.append(json.loads((tmp_path / "inference.json").read_text()))
            raise KeyboardInterrupt
        return real(sides, count, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(bench_infer, "one_row", fails_at_two)
        with pytest.raises(KeyboardInterrupt):
            bench(monkeypatch, tmp_path, *words)
    assert [row["batch"] for row in seen[0]["results"]] == [1]
    report = bench(monkeypatch, tmp_path, *words, "--budget", "0.001")
    assert [row.get("skipped") for row in report["results"]] == ["no time left"]


class Clocked:
    """A clock, and a side whose runs take as long as they are told."""

    def __init__(self, *seconds: float) -> None:
        self.now, self.left = 0.0, list(seconds)

    def run(self, count: int) -> Any:
        self.now += self.left.pop(0) * count
        return type("Made", (), {"timings": {"text": 0.0}})

    def side(self) -> Any:
        inside = inference_rows.Inside(torch.device("cpu"))
        return inference_rows.Side("ours", self.run, inside, lambda: 0, {})


def test_a_row_begins_only_if_the_last_one_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: a warm-up of 50 s that compiles, three repetitions of 4 s, a run for the peak.

    Without the repetitions after the first that is 58 s, for twice the videos 116 s, and a fifth
    more to be safe.
    """
    clock = Clocked(50, 4, 4, 4, 4)
    ticking = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now)
    for module in (bench_infer, inference_rows):
        monkeypatch.setattr(module, "time", ticking)
    monkeypatch.setattr(bench_infer, "STARTED", 0.0)
    monkeypatch.setattr(bench_infer, "peak_gib", lambda side, count: bool(side.run(count)) + 0.0)
    monkeypatch.setattr(bench_infer, "summary", lambda rows, steps: {"seconds": {}, "forward": {}})
    args = argparse.Namespace(warmup=1, repetitions=3)
    report = bench_infer.Report(
        tmp_path / "inference.json", {"command": "bench_infer"}, 66 + 1.2 * 116 + 1
    )

    def row(count: int) -> dict[str, Any]:
        return bench_infer.one_row([clock.side()], count, "ours", args, report)

    assert len(row(1)["rows"]) == 3 and clock.now == 66
    assert (report.expected_s(1), report.expected_s(2)) == (58, 116)
    assert row(3) == {"batch": 3, "variant": "ours", "skipped": "no time left"}
    clock.left = [25, 2, 2, 2, 2]
    assert len(row(2)["rows"]) == 3
    assert clock.now == 66 + 66 and report.expected_s(2) == 58


def test_repetitions_leave_time_for_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs after the last one; without time for any, there is no repetition."""
    clock = Clocked(9, 1, 1, 1, 1, 1)
    monkeypatch.setattr(inference_rows, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def enough(seconds: float) -> bool:
        return clock.now + 3 * seconds <= 13

    def repetitions(warmup: int) -> int:
        return len(inference_rows.measure_together([clock.side()], 1, warmup, 9, enough))

    assert repetitions(1) == 2 and clock.now == 11
    clock = Clocked(9, 1, 5, 1)
    assert repetitions(3) == 0 and clock.now == 15


def test_a_row_that_fails_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Out of memory for two videos, and a kernel that breaks when the engine is made."""
    real = inference_rows.Source.student

    def student(self: inference_rows.Source, **options: Any) -> Any:
        if options["attention"] == "sdpa-flash":
            raise RuntimeError("CUDA error:\n an illegal memory access")
        return real(self, **options)

    def measure(sides: Any, count: int, *rest: Any) -> Any:
        if count == 2:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return together(sides, count, *rest)

    together = inference_rows.measure_together
    monkeypatch.setattr(inference_rows.Source, "student", student)
    monkeypatch.setattr(bench_infer, "measure_together", measure)
    words = ("--random", "sprites", "--layers", "1", "--batches", "2", "1", "--ours-only")
    kinds = ("--attention", "sdpa-flash", "auto", "--repetitions", "1", "--warmup", "0")
    report = bench(monkeypatch, tmp_path, *words, *kinds, code=1)
    broken, two, one = report["results"]
    assert broken["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert two["error"] == "OutOfMemoryError: tried to allocate 2 GiB" and two["batch"] == 2
    assert one["seconds"]["ours"] > 0 and "error" not in one
    assert "sdpa-flash, as it comes: error: RuntimeError" in capsys.readouterr().out


def test_a_gpu_measures_one_network_at_a_time(
    shared_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of a GPU, on the CPU: stock is gone before the engine comes."""
    sides = []
    real = bench_infer.one_row

    def noted(given: Any, *rest: Any) -> Any:
        sides.append([side.name for side in given])
        return real(given, *rest)

    monkeypatch.setattr(bench_infer, "one_row", noted)
    words = ("--weights", str(shared_student), "--batches", "1", *SHORT)
    monkeypatch.setattr(bench_infer, "measures_alone", lambda device: True)
    report = bench(monkeypatch, tmp_path, *words)
    assert sides == [["stock"], ["ours"]]
    stock, ours = report["results"]
    assert stock["variant"] == "stock" and ours["seconds"]["stock"] == stock["seconds"]["stock"]
    assert ours["speedup"] == ours["seconds"]["stock"] / ours["seconds"]["ours"]


def test_the_source_must_be_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_infer"])
    with pytest.raises(SystemExit):
        bench_infer.main()
    assert "give --weights DIR or --random SHAPE" in capsys.readouterr().err
