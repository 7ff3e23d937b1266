"""Warnings: each happens in a recorded run of the bundled teacher, and none in the shipped one.

``recorded_warnings.json`` has what the runs of docs/when-to-stop.md wrote to ``metrics.jsonl``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from distill.running.recorders import Recorder
from distill.running.warnings import GROWTH, WINDOW, RunWarnings
from lightx2v_sgmd.apps.watch.reading import WatchedRun
from lightx2v_sgmd.job.schema import Job
from tests.training import make_job

RECORDED = json.loads(Path(__file__).with_name("recorded_warnings.json").read_text())
EXPECTED: dict[str, dict[str, int]] = {
    "healthy": {},
    "four videos a batch": {},
    "eight videos a batch": {},
    "lambda 2": {"motion": 80, "saturation": 100, "brightness": 120},
    "starved fake score": {"nr": 86, "fake score": 89, "brightness": 160},
}
"""The step of each warning of a run."""


@pytest.fixture
def job(tiny_teacher: Path, tmp_path: Path) -> Job:
    return make_job(tiny_teacher, tmp_path, "train.warmup=10")


def found_in(job: Job, lines: list[dict[str, Any]]) -> dict[str, int]:
    warnings = RunWarnings(job)
    steps: dict[str, int] = {}
    for line in lines:
        new = {**warnings.losses(line), **warnings.samples(line)}
        steps |= {name: line["step"] for name in new}
    return steps


@pytest.mark.parametrize("name", EXPECTED)
def test_recorded_runs(job: Job, name: str) -> None:
    assert found_in(job, RECORDED[name]) == EXPECTED[name]


@pytest.mark.parametrize("name", ["lambda 2", "starved fake score"])
def test_a_warning_says_what_to_do_and_names_no_file(job: Job, name: str) -> None:
    """An installed package has no docs folder; the remedies are settings that a job has."""
    warnings, keys = RunWarnings(job), job.to_yaml()
    for line in RECORDED[name]:
        for text in {**warnings.losses(line), **warnings.samples(line)}.values():
            assert "docs/" not in text
            settings = re.findall(r"[a-z_.]+\.([a-z_]+)\b", text.rpartition("; ")[2])
            assert settings and all(f"{key}:" in keys for key in settings)


def made_lines(factor: float, count: int = 100, grows: bool = True) -> list[dict[str, Any]]:
    """Lines whose NR is multiplied after the 60th step, and the gradient after the 40th."""

    def norm(step: int) -> float:
        return 20.0 if grows and step > 40 else 1.0

    return [
        {"step": s, "nr": -0.02 * (factor if s > 60 else 1.0), "grad_norm": {"fake_score": norm(s)}}
        for s in range(1, count + 1)
    ]


def test_a_term_has_grown_when_the_mean_of_a_window_has(job: Job) -> None:
    assert found_in(job, made_lines(0.99 * GROWTH)) == {}
    # The mean over 25 is twice the first one when 25 of 25 are; a little more comes earlier.
    assert found_in(job, made_lines(1.01 * GROWTH)) == {"nr": 60 + WINDOW}
    assert found_in(job, made_lines(10 * GROWTH)) == {"nr": 62}
    assert found_in(job, made_lines(10 * GROWTH, count=40)) == {}
    assert found_in(job, made_lines(10 * GROWTH, grows=False)) == {}


def sample_line(step: int, **parts: float) -> dict[str, Any]:
    teacher = {"optflow": 0.5, "brightness": 0.4, "saturation": 0.2}
    ours = {key: value * parts.get(key, 1.0) for key, value in teacher.items()}
    return {"step": step, "samples": ours, "teacher_samples": teacher}


@pytest.mark.parametrize(
    ("key", "parts", "name"),
    [
        ("saturation", (1.2, 1.3), "saturation"),
        ("saturation", (1.2, 1.1), None),
        ("saturation", (1.3, 1.2), None),  # on its way back
        ("brightness", (0.8, 0.7), "brightness"),
        ("brightness", (1.1, 1.3), None),  # one sample step alone
        ("optflow", (0.5, 0.4), "motion"),
        ("optflow", (0.4, 0.5), None),
        ("optflow", (1.5, 2.0), None),
    ],
)
def test_samples_that_leave_the_teachers(
    job: Job, key: str, parts: tuple[float, float], name: str | None
) -> None:
    lines = [sample_line(10 * (i + 1), **{key: part}) for i, part in enumerate(parts)]
    assert found_in(job, lines) == ({} if name is None else {name: 20})


def test_without_the_teachers_samples_nothing_is_said(job: Job) -> None:
    lines = [sample_line(step, optflow=0.1) for step in (1, 2, 3)]
    for line in lines:
        line["teacher_samples"] = {"optflow": 0.0} if line["step"] == 2 else None
    assert found_in(job, lines) == {}


def test_a_warning_is_said_once_in_log_terminal_and_page(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    run = job.output.dir
    run.mkdir()
    (run / "job.yaml").write_text(job.to_yaml())
    lines = made_lines(1.01 * GROWTH)
    for part in (lines[:85], lines[85:]):  # stopped, and resumed
        warnings = RunWarnings(job, quiet=False)
        recorder = Recorder(run, part[0]["step"] - 1, board=False, warnings=warnings)
        for line in part:
            recorder.record(line, more=line["step"] in (75, 85))
            if line["step"] in (75, 85):  # the sample step that has both kinds
                values = sample_line(line["step"], optflow=0.3)
                recorder.extend(line.pop("step"), {k: values[k] for k in values if k != "step"})
        recorder.close()
    (found,) = [json.loads(x) for x in (run / "metrics.jsonl").open() if "warnings" in x]
    assert found["step"] == 85 and found["warnings"].keys() == {"nr", "motion"}
    said = capsys.readouterr().err
    assert said.count("warning, nr: the term nr is 2.0 times") == said.count("warning, motion") == 1
    shown = WatchedRun.open(run).state()["warnings"]
    assert [(warning["step"], warning["name"]) for warning in shown] == [(85, "nr"), (85, "motion")]
