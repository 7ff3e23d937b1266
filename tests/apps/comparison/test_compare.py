"""The command from end to end, in real processes: stopped, gone on with, reported on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.apps.comparison import running
from lightx2v_sgmd.cli.main import run
from tests.training import job_file

ROOT = Path(__file__).resolve().parents[3]
ROWS = ("sgmd lambda=0.1", "sgmd lambda=0.5")
ITERATIONS = 30
PATIENCE_S = 900.0
"""Far more than it takes; a machine may be busy."""


def command(job: Path, out: Path) -> list[str]:
    return [
        *("compare", str(job), "--sweep", "method.lambda=0.1,0.5", "--seeds", "2"),
        *("--out", str(out), "--workers", "2", "--every", "15", "--prompts", "4"),
        *("--set", f"train.iterations={ITERATIONS}"),
    ]


def stop_when_training(arguments: list[str], out: Path) -> int:
    """Starts the command, interrupts it as soon as a run trains, and gives its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lightx2v_sgmd", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not any(trace.stat().st_size for trace in out.glob("runs/*/*/metrics.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline, "it never trained"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert "the runs save where they are" in said, said
    return process.returncode


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_goes_on_to_its_report(
    tiny_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job, out = job_file(tiny_teacher, tmp_path), tmp_path / "out"
    arguments = command(job, out)
    assert stop_when_training(arguments, out) == 130
    interrupted = {path: path.stat().st_mtime_ns for path in out.glob("measured/*/*/*.json")}
    assert interrupted and not (out / "report.html").exists()
    assert list(out.glob("runs/*/*/checkpoints/step_*")), "the run was saved where it was"

    assert run([*arguments, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert {p: p.stat().st_mtime_ns for p in interrupted} == interrupted
    check_results(results)
    for trace in out.glob("runs/*/*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in trace.read_text().splitlines()]
        assert steps == list(range(1, ITERATIONS + 1))
    check_files(out, results)

    # A third time it trains and measures nothing, and writes the same report.
    monkeypatch.setattr(running.Pool, "start", None)
    (out / "report.html").unlink()
    assert run([*arguments, "--quiet"]) == 0
    assert json.loads((out / "results.json").read_text()) == results
    assert (out / "report.html").is_file() and "| sgmd lambda=0.5 |" in capsys.readouterr().out


def check_results(results: dict[str, Any]) -> None:
    assert list(results["rows"]) == ["teacher", "undistilled", *ROWS]
    assert results["seeds"] == [0, 1] and results["failures"] == {}
    for name in ROWS:
        row = results["rows"][name]
        assert row["seeds"] == [0, 1] and row["fake_score_updates"] == 1
        assert [point["step"] for point in row["curve"]] == [0, 15, 30]
        assert len(row["equal_iterations"]["frechet"]["values"]) == 2
        assert row["equal_compute"]["step"] == ITERATIONS
        # Two of the teacher and one of the fake score; the student's depend on the exit steps.
        passes = row["cost"]["by_role"]["forwards"]
        assert passes["teacher"]["mean"] == 2 and 1 <= passes["student"]["mean"] <= 4
        assert row["cost"]["cpu_seconds"]["mean"] > 0
    first, second = (results["rows"][name]["equal_iterations"]["frechet"] for name in ROWS)
    assert first["values"] != second["values"] and first["values"][0] != first["values"][1]


def check_files(out: Path, results: dict[str, Any]) -> None:
    assert json.loads((out / "results.json").read_text()) == results
    assert (out / "contact_sheet.png").stat().st_size > 1000
    page = (out / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    videos = [s for s in sources if s.startswith("data:video/mp4;base64,")]
    plots = [s for s in sources if s.startswith("data:image/svg+xml;base64")]
    assert len(videos) == 4 * 4 and len(plots) >= 2 and len(videos) + len(plots) == len(sources)
    assert "cannot be checked in the frames" in page and "{{" not in page
    assert all(name in page for name in ROWS)


def test_what_cannot_be_is_refused_at_once(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, out = str(job_file(tiny_teacher, tmp_path)), str(tmp_path / "out")
    for options, text in {
        ("--methods", "sgmd,nope"): "--methods: 'nope' is unknown; use ",
        ("--seeds", "0"): "--seeds: 0 is too few",
        ("--workers", "0"): "--workers: 0 is too few",
        ("--nproc", "0"): "--nproc: 0 is too few",
        ("--compute", "money"): "'money'",
    }.items():
        assert run(["compare", job, "--out", out, *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line
    assert not Path(out).exists()
    (tmp_path / "file").write_text("")
    assert run(["compare", job, "--out", str(tmp_path / "file" / "out")]) == 2


def test_failed_runs_are_told_in_a_line(
    tiny_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    job, out = str(job_file(tiny_teacher, tmp_path)), str(tmp_path / "out")
    assert run(["compare", job, "--out", out, "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is nothing to report on without the teacher: its process")
    assert run(["compare", job, "--out", out + "2", "--report-only"]) == 2
    assert "holds no comparison yet" in capsys.readouterr().err
    assert run(["compare", job, "--out", out, "--quiet", "--report-only"]) == 1
    assert "its videos have not been made yet" in capsys.readouterr().err
