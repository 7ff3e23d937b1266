"""The training benchmark: phases add up, methods are compared, communication is told apart."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training import job_file, needs_deepspeed
from tools.benchmarks import bench_train
from tools.benchmarks.phases import PHASES, Phases, exposed
from tools.benchmarks.training_rows import TrainingBench, gpu_peak_tflops


def bench(job: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict:  # type: ignore[type-arg]
    command = ["bench_train", str(job), "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", command)
    bench_train.main()
    found: dict = json.loads(out.read_text(encoding="utf-8"))  # type: ignore[type-arg]
    return found


@pytest.mark.slow
def test_two_methods_in_one_run(
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = job_file(tiny_teacher, tmp_path).rename(tmp_path / "job_sgmd.yaml")
    text = job.read_text(encoding="utf-8")
    (tmp_path / "job_dmd2.yaml").write_text(text + "method: {name: dmd2}\n", encoding="utf-8")
    options = ("--methods", "sgmd,dmd2", "--warmup", "1", "--peak-tflops", "0.5")
    trace = tmp_path / "trace.json"
    report = bench(job, tmp_path / "b.json", monkeypatch, *options, "--trace", str(trace))
    sgmd, dmd2 = report["methods"]
    assert (sgmd["forward_equivalents"], dmd2["forward_equivalents"]) == (10.5, 35.0)
    for result in (sgmd, dmd2):
        assert sum(result["phases_s"].values()) == pytest.approx(result["seconds"], rel=0.02)
        for phase in ("rollout", "teacher", "fake score", "student backward", "optimizer"):
            assert result["phases_s"][phase] > 0, phase
        assert result["phases_s"]["other"] < result["seconds"] / 4
        assert len(result["each_s"]) == 4 and result["communication_share"] == 0
        assert result["mfu"] == pytest.approx(result["tflop"] / result["seconds"] / 0.5)
        assert result["mfu_useful"] == result["mfu"]  # nothing is computed again
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert "s to the first" in head and rows[0].endswith("| 1.00 |") and len(rows) == 2
    assert json.loads((tmp_path / "trace_dmd2.json").read_text(encoding="utf-8"))["traceEvents"]


@pytest.mark.slow
def test_what_is_computed_again_is_no_use(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_file(tiny_teacher, tmp_path)
    options = ("--set", "parallel.gradient_checkpointing=true", "--warmup", "0")
    report = bench(job, tmp_path / "b.json", monkeypatch, *options, "--peak-tflops", "1")
    (result,) = report["methods"]
    assert result["forward_equivalents"] == 13.5 and result["mfu_useful"] < result["mfu"]


@needs_deepspeed
@pytest.mark.slow
def test_two_ranks(tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_file(tiny_teacher, tmp_path)
    options = ["--set", "parallel.strategy=zero3", "--warmup", "1", "--nproc", "2"]
    with pytest.raises(SystemExit) as left:
        bench(job, tmp_path / "b.json", monkeypatch, *options)
    assert left.value.code == 0
    report = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    (result,) = report["methods"]
    assert report["machine"]["processes"] == 2 and result["forward_equivalents"] == 11.5
    assert 0 < result["communication_share"] < 1
    assert sum(result["phases_s"].values()) == pytest.approx(result["seconds"], rel=0.02)


def test_time_counts_for_the_innermost_phase() -> None:
    times = iter([0.0, 1.0, 3.0, 7.0])
    phases = Phases(torch.device("cpu"), clock=lambda: next(times))
    with phases.phase("rollout"), phases.phase("communication"):
        pass
    assert phases.seconds == dict.fromkeys(PHASES, 0.0) | {"rollout": 5.0, "communication": 2.0}


def test_communication_that_no_computation_hides() -> None:
    assert exposed([(0, 4), (3, 5)], [(1, 2), (4.5, 9)]) == 3.5
    assert exposed([(1, 2)], [(0, 3)]) == 0 and exposed([], [(0, 1)]) == 0


def test_an_unknown_method(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_file(tiny_teacher, tmp_path)
    with pytest.raises(SystemExit, match="--methods dmd2: there is no .*dmd2"):
        bench(job, tmp_path / "b.json", monkeypatch, "--methods", "sgmd,dmd2")


def test_the_peak_of_a_gpu_by_its_name() -> None:
    named = {"H100 80GB HBM3": 989, "H100 PCIe": 756, "H200": 989, "H20": 148, "A100-SXM4": 312}
    found = {name: gpu_peak_tflops(f"NVIDIA {name}") for name in named}
    assert found == named and gpu_peak_tflops("GeForce GTX 1080") is None


@pytest.mark.parametrize(
    "strategy",
    ["local", pytest.param("zero3", marks=[needs_deepspeed, pytest.mark.slow])],
)
def test_a_shape_with_random_weights(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads no folder of weights; memory is held to the plan's."""
    out = tmp_path / "b.json"
    options = ("--accumulation", "1", "--warmup", "1", "--iterations", "2", "--budget", "500")
    small = ("--set", "train.micro_batch=4")
    command = ["bench_train", "--shape", "sprites", "--strategy", strategy, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, *options, *small])
    monkeypatch.setattr(bench_train, "_STARTED", time.monotonic())  # not when tests were collected
    monkeypatch.setattr("lightx2v_sgmd.families.wan.model.WanModel.transformer_weights", None)
    bench_train.main()
    report = json.loads(out.read_text(encoding="utf-8"))
    (result,) = report["methods"]
    assert report["complete"] and "job" in report and result["strategy"] == strategy
    assert result["iterations"] == 2 and len(result["warmup_s"]) == 1
    assert result["forward_equivalents"] == {"local": 10.5, "zero3": 11.5}[strategy]
    if strategy == "local":
        assert result["memory_to_plan"] == pytest.approx(1, rel=0.1)


@pytest.mark.slow
def test_a_budget_ends_the_measurements(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With time for two iterations, and with no time for any, the JSON is whole."""
    job, out = job_file(tiny_teacher, tmp_path), tmp_path / "b.json"
    left = iter([True, True, True, False, False, False])
    with monkeypatch.context() as patched:
        patched.setattr(bench_train.Clock, "enough", lambda self, ranks, seconds: next(left))
        report = bench(job, out, monkeypatch, "--warmup", "1", "--iterations", "4")
    (result,) = report["methods"]
    assert not report["complete"] and result["iterations"] == 2 and result["seconds"] > 0
    assert result["skipped"] == ["iterations: no time left", "profile: no time left"]
    report = bench(job, out, monkeypatch, "--budget", "0.001")
    (result,) = report["methods"]
    assert not report["complete"] and result["iterations"] == 0 and "seconds" not in result


@pytest.mark.slow
def test_the_file_is_there_after_every_iteration(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed then loses the rest alone."""
    job, out = job_file(tiny_teacher, tmp_path), tmp_path / "b.json"
    measure, found = TrainingBench.measure, []

    def third_fails(self: TrainingBench) -> None:
        if len(self.seconds) == 2:
            found.append(json.loads(out.read_text(encoding="utf-8")))
            raise KeyboardInterrupt
        measure(self)

    monkeypatch.setattr(TrainingBench, "measure", third_fails)
    with pytest.raises(KeyboardInterrupt):
        bench(job, out, monkeypatch, "--warmup", "0")
    (result,) = found[0]["methods"]
    assert result["iterations"] == 2 and len(result["each_s"]) == 2
