"""The page of GPU figures says what was measured on a GPU, and nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tools.gpu_check import __main__ as command
from tools.gpu_check.page import page_of
from tools.gpu_check.page.goals import GOALS, figures
from tools.gpu_check.page.sections import UNKNOWN

ROOT = Path(__file__).resolve().parents[2]
NETWORK = {"first_s": 40.0, "peak_gib": 30.0, "attention": "sdpa", "took_s": 60.0}
REPORT: dict[str, Any] = {
    "format": 1,
    "commit": "abc",
    "started": "2030-01-02 03:04:05 UTC",
    "shape": "14b",
    "size": [480, 832, 81],
    "device": "cuda",
    "clock": {"start": 0.0, "budget_s": 1.0},
    "steps": {
        "machine": {
            "status": "done",
            "rows": {
                "packages": {"torch": "2.11.0", "deepspeed": "missing"},
                "gpu": {"name": "NVIDIA H100 80GB HBM3", "memory_total_gib": 79.6},
                "doctor": {"checks": [{"name": "xy", "state": "missing", "detail": "no xy"}]},
            },
        },
        "limits": {
            "status": "done",
            "ceilings": {"flops_bf16": 700e12, "flops_fp8": 1200e12, "flops_tf32": 400e12},
            "rows": {},
        },
        "attention": {
            "status": "done",
            "rows": {
                "flash3": {"unavailable": "FlashAttention 3 is not installed", "took_s": 0.1},
                "sdpa": {
                    "kernel": "PyTorch ran",
                    "tflops": 600.0,
                    "relative_error": 0.003,
                    "self": {"ms": 36.6, "tflops": 600.0, "relative_error": 0.003},
                    "text": {"ms": 1.0, "tflops": 340.0, "relative_error": 0.002},
                    "took_s": 3.0,
                },
            },
        },
        "forward": {
            "status": "done",
            "rows": {
                "stock, eager": {"ms": 3200.0, "tflops": 524.0, **NETWORK},
                "stock, compiled": {"error": "RuntimeError: no", "took_s": 1.0},
                "engine, as it comes": {
                    "ms": 2500.0,
                    "tflops": 671.0,
                    "difference_to_stock": 0.004,
                    "kernels_ms": {"product": 1200.0, "attention": 1250.0, "idle": 50.0},
                    "slowest": [[1200.0, 400, "nvjet_gemm"]],
                    **NETWORK,
                },
                "engine, fp8": {"ms": 2300.0, "tflops": 730.0, **NETWORK},
                "engine, eager": {"skipped": "3 s left, 20 s expected"},
            },
        },
        "vae": {
            "status": "done",
            "rows": {
                "stock diffusers": {"s": 4.0, "tflop": 280.0, "took_s": 9.0},
                "engine, as it comes": {"s": 1.4, "levels_max": 1, "took_s": 9.0},
            },
        },
        "video": {
            "status": "done",
            "rows": {
                "engine, as it comes": {
                    "load_s": 2.0,
                    "first": {"text": 0.5, "denoise": 50.0, "decode": 5.0, "total": 55.5},
                    "second": {"text": 0.0, "denoise": 10.2, "decode": 1.5, "total": 11.7},
                    "needed_gib": {"denoise": 50.0},
                    "measured_gib": {"denoise": 48.0},
                    "memory_ratio": {"denoise": 0.96},
                    "took_s": 70.0,
                },
            },
        },
        "training": {
            "status": "done",
            "rows": {
                "local": {
                    "iteration_s": 10.0,
                    "mfu": 0.46,
                    "mfu_useful": 0.38,
                    "tflop": 4021.43,
                    "tflops_per_s": 455.0,
                    "phases_s": {"rollout": 4.0, "teacher": 6.0, "optimizer": 0.5},
                    "memory_to_plan": 0.85,
                    "took_s": 60.0,
                },
                "zero3": {"unavailable": "DeepSpeed is not installed", "took_s": 0.0},
            },
        },
        "selective": {
            "status": "done",
            "rows": {
                "local, selective": {
                    "iteration_s": 9.0,
                    "mfu": 0.45,
                    "mfu_useful": 0.42,
                    "tflops_per_s": 445.0,
                    "phases_s": {"rollout": 4.0, "teacher": 5.0},
                    "memory_to_plan": 0.9,
                    "took_s": 60.0,
                },
            },
        },
    },
}


def page(tmp_path: Path, *reports: dict[str, Any]) -> str:
    paths = []
    for index, report in enumerate(reports):
        path = tmp_path / f"{index}.json"
        path.write_text(json.dumps(report))
        paths.append(path)
    return page_of(paths)


def line(text: str, start: str) -> list[str]:
    found = next(row for row in text.splitlines() if row.startswith(f"| {start} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_figures_stand_beside_ceilings_and_goals(tmp_path: Path) -> None:
    text = page(tmp_path, REPORT)
    assert "NVIDIA H100 80GB HBM3 (79.6 GiB" in text and "commit abc" in text
    assert line(text, GOALS[0].what)[2:4] == ["2.5 s", "**met**"]
    assert line(text, GOALS[1].what)[2:4] == ["2.3 s", "**not met**"]
    assert line(text, "faster than stock diffusers eager")[2:4] == ["1.28 times", "**not met**"]
    assert line(text, "faster than stock diffusers compiled")[2:4] == [UNKNOWN, UNKNOWN]
    assert line(text, "training memory: farthest strategy from its plan")[2] == "15 %"
    assert line(text, "sdpa")[1:5] == ["36.60", "600", "86%", "3.0e-03"]
    assert line(text, "engine, as it comes")[1:4] == ["2500", "1.28", "96%"]
    # 785 TFLOP of products at 700 TFLOP/s, 893 of attention at 600.
    least = {cells[1]: cells[3] for cells in _bounds(text)}
    assert least == {"**attention**": "1488", "product": "1122", "idle": ""}
    assert line(text, "denoise")[1:] == ["50.00", "10.20", "10.44", "50.0", "48.0", "0.96"]
    whole = text.split("## A whole video")[1]
    assert line(whole, "decode")[1:4] == ["5.00", "1.50", "0.70"]  # 280 / 400
    decoded = text.split("## The VAE's decode")[1]
    assert line(decoded, "engine, as it comes")[1:4] == ["1.40", "2.86", "2.0 times"]
    assert line(text, "local")[1:5] == ["10.00", "46.0%", "38.0%", "65.0%"]
    assert line(text, "local, selective")[1:4] == ["9.00", "45.0%", "42.0%"]
    assert line(text, GOALS[2].what)[2:4] == ["11.7 s", "**met**"]
    assert "failed: RuntimeError: no" in text and "- forward: engine, eager: 3 s left" in text
    not_run = text.split("Not run:")[1].split("Not on that machine:")[0]
    assert "- kernels: a forward with each attention kernel" in not_run
    assert "- decodes: the decode in other settings" in not_run and "- vae" not in not_run
    assert (
        "- attention: flash3: FlashAttention 3 is not installed" in text and "- xy: no xy" in text
    )


def test_a_goal_that_was_missed_or_not_measured_says_why(tmp_path: Path) -> None:
    """Each cause by hand: 785 TFLOP of products at 700 TFLOP/s and 893 of attention at 700."""
    report = copy.deepcopy(REPORT)
    steps = report["steps"]
    steps["attention"]["rows"]["flash3"] = {
        "kernel": "FlashAttention 3 ran",
        "tflops": 700.0,
        "relative_error": 0.002,
        "self": {"ms": 31.6, "tflops": 700.0, "relative_error": 0.002},
        "text": {"ms": 0.7, "tflops": 400.0, "relative_error": 0.002},
        "took_s": 3.0,
    }
    row = steps["forward"]["rows"]["engine, as it comes"]
    row |= {"ms": 2700.0, "kernels_ms": {"product": 1100.0, "attention": 1500.0, "idle": 20.0}}
    del steps["video"]["rows"]["engine, as it comes"]["second"]
    steps["training"]["rows"]["zero3"] = {"skipped": "28 s left, 75 s expected"}
    text = page(tmp_path, report)
    why = {goal.figure: line(text, goal.what)[3:] for goal in GOALS}
    verdict, said = why["forward_s"]
    assert verdict == "**not met**"
    assert said.startswith("attention 1.50 s, products 1.10 s, the passes between them 0.00 s")
    assert "best rates: 2.40 s" in said
    assert "flash3 is 5.0 ms a call faster in the table below, 0.20 s in 40 blocks" in said
    verdict, said = why["over_stock_eager"]
    assert verdict == "**not met**" and "1.33 times faster than stock, eager" in said  # 3.2 / 2.40
    assert why["over_stock_compiled"] == [UNKNOWN, "failed: RuntimeError: no"]
    assert why["video_s"][0] == UNKNOWN and why["video_s"][1].endswith("add up to 12.2 s")
    assert why["zero3_over_local"] == [UNKNOWN, "no time: 28 s left, 75 s expected"]
    assert why["mfu_percent"] == [
        "**met**",
        "operations that gradient checkpointing computes twice are counted twice; counted once, "
        "the share is 38.0%",
    ]
    assert why["kernel_error"] == ["**met**", ""]
    del steps["video"]
    text = page(tmp_path, report)
    assert line(text, GOALS[2].what)[4].startswith("the step video did not run; four forwards")


def test_a_phase_of_training_stands_beside_the_least_it_could_be(tmp_path: Path) -> None:
    """A 1.3B forward is 82.09 TFLOP of products and 200.9 of attention.

    Products run at 700 TFLOP/s and attention at 600: a faster kernel without a backward pass does
    not count. The teacher has two forwards, the rollout 2.5. All phases have 13.5 of products, and
    of attention 14.5, because its backward pass is two forwards.
    """
    report = copy.deepcopy(REPORT)
    steps = report["steps"]
    steps["attention"]["rows"]["flash3"] = {
        **steps["attention"]["rows"]["sdpa"],
        "kernel": "FlashAttention 3 ran",
        "tflops": 700.0,
    }
    text = page(tmp_path, report).split("### What bounds training")[1].split("\n## ")[0]
    rows = [row for row in text.splitlines() if row.startswith("| local |")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    found = {row[1]: row[2:] for row in cells}
    assert found["teacher"] == ["6.00", "0.90", "0.23", "**0.67**", "6.64 times"]
    assert found["rollout"] == ["4.00", "1.13", "0.29", "**0.84**", "3.54 times"]
    assert found["**whole iteration**"] == ["10.00", "6.44", "1.58", "**4.86**", "1.55 times"]
    assert found["optimizer"] == ["0.50", "", "", "", ""]
    steps["training"]["rows"]["local"]["tflop"] = 4000.0  # the job has other operations by now
    text = page(tmp_path, report).split("### What bounds training")[1]
    assert line(text, "local")[2:] == ["10.00", "", "", "", ""]
    del steps["training"], steps["selective"]
    text = page(tmp_path, report).split("### What bounds training")[1]
    assert line(text, "local")[2:] == [UNKNOWN] * 5


def test_figures_of_a_network_without_real_numbers_do_not_count(tmp_path: Path) -> None:
    report = copy.deepcopy(REPORT)
    report["steps"]["forward"]["rows"]["engine, fp8"]["difference_to_stock"] = "nan"
    text = page(tmp_path, report)
    assert line(text, GOALS[1].what)[2:4] == [UNKNOWN, UNKNOWN]
    assert line(text, "engine, fp8")[1] == (
        "failed: the network gave numbers that are not finite, in 2300 ms a forward"
    )


def _bounds(text: str) -> list[list[str]]:
    part = text.split("### What bounds it")[1].split("Slowest kernels")[0]
    rows = [row.strip("|").split("|") for row in part.splitlines() if row.startswith("| engine")]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_committed_page_is_written_by_this_code() -> None:
    """It changes only by the command, from the reports in the repository."""
    reports = sorted((ROOT / "docs" / "benchmarks").glob("gpu*.json"))
    assert (ROOT / "docs" / "benchmarks" / "gpu.md").read_text(encoding="utf-8") == page_of(reports)


def test_without_a_report_nothing_is_claimed() -> None:
    text = page_of([])
    assert "**Not measured yet**" in text and "met**" not in text.replace("measured", "")
    for goal in GOALS:
        assert line(text, goal.what)[2:] == [UNKNOWN, UNKNOWN, ""]
    assert figures({"steps": {}}) == {}


def test_a_cpus_figures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "gpu_check.json"
    out = tmp_path / "page.md"
    other = {**REPORT, "shape": "1.3b"}
    for content, said in (
        (json.dumps({**REPORT, "device": "cpu"}), "is a rehearsal on a cpu"),
        ("{}", "is no report of this version"),
        ("{", "cannot be read as a report"),
    ):
        report.write_text(content)
        assert command.main(["--page", str(report), "--page-out", str(out)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not out.exists()
    report.write_text(json.dumps(REPORT))
    (tmp_path / "other.json").write_text(json.dumps(other))
    words = ["--page", str(report), str(tmp_path / "other.json"), "--page-out", str(out)]
    assert command.main(words) == 2 and "reports of one shape" in capsys.readouterr().err
    assert command.main(["--page", str(report), "--page-out", str(out)]) == 0 and out.exists()


def test_a_later_run_completes_an_earlier_one(tmp_path: Path) -> None:
    later = copy.deepcopy(REPORT)
    later["commit"] = "def"
    later["steps"] = {
        "attention": {"status": "skipped", "reason": "no time"},
        "forward": {
            "status": "done",
            "rows": {
                "stock, compiled": {"ms": 2750.0, "tflops": 610.0, **NETWORK},
                "engine, as it comes": {"skipped": "1 s left, 30 s expected"},
            },
        },
    }
    text = page(tmp_path, REPORT, later)
    assert line(text, "faster than stock diffusers compiled")[2:4] == ["1.1 times", "**not met**"]
    assert line(text, "sdpa")[1] == "36.60" and "commit abc, def" in text


def test_the_decodes_in_other_settings_stand_beside_the_engines(tmp_path: Path) -> None:
    report = copy.deepcopy(REPORT)
    report["steps"]["decodes"] = {
        "status": "done",
        "rows": {"engine, tiled": {"s": 2.0, "levels_max": 3, "took_s": 9.0}},
    }
    decoded = page(tmp_path, report).split("## The VAE's decode")[1]
    assert line(decoded, "engine, tiled")[1:3] == ["2.00", "2.00"]
    assert line(decoded, "engine, as it comes")[1:3] == ["1.40", "2.86"]
    earlier = copy.deepcopy(REPORT)  # one step had all settings
    earlier["steps"]["vae"]["rows"] |= report["steps"]["decodes"]["rows"]
    text = page(tmp_path, earlier)
    assert text.split("## The VAE's decode")[1].startswith(decoded.split("## ")[0])
    assert "- decodes" not in text


def test_another_gpu_is_held_to_no_goal(tmp_path: Path) -> None:
    report = copy.deepcopy(REPORT)
    report["steps"]["machine"]["rows"]["gpu"]["name"] = "NVIDIA H200"
    text = page(tmp_path, report)
    assert line(text, GOALS[0].what)[2:4] == ["2.5 s", "set for an H100"]
    small = copy.deepcopy(REPORT)
    small["shape"] = "1.3b"
    assert "forward_s" not in figures(small)
