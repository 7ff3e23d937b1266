"""A run's folder as training leaves it, without the training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lightx2v_sgmd.files.video import write_video
from tests.training import make_job

MEASURES = {"optflow": 0.2, "brightness": 0.5, "frechet": 3.0}


def write_line(run: Path, step: int, **more: object) -> None:
    line = {"step": step, "fisher": 1 / step, "nr": -0.1, "lr": {"student": 1e-4}, "seconds": 2.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**line, **more}) + "\n")


def write_samples(run: Path, folder: str, level: int, count: int = 2) -> None:
    for index in range(count):
        frames = np.full((5, 32, 32, 3), level, np.uint8)
        write_video(frames, run / "samples" / folder / f"{index:02d}.mp4", 8.0)


@pytest.fixture(scope="session")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples of ``run``, which are encoded once."""
    folder = tmp_path_factory.mktemp("sampled")
    write_samples(folder, "teacher", 60)
    write_samples(folder, "step_000002", 120)
    return folder / "samples"


@pytest.fixture
def run(tiny_teacher: Path, sampled: Path, tmp_path: Path) -> Path:
    """A run of 5 iterations that has done 3 of them, with samples at the second."""
    job = make_job(tiny_teacher, tmp_path)
    folder: Path = job.output.dir
    folder.mkdir()
    (folder / "job.yaml").write_text(job.to_yaml())
    for step in (1, 2, 3):
        write_line(folder, step)
    teacher = {"optflow": 0.25, "brightness": 0.5}
    text = (folder / "metrics.jsonl").read_text().splitlines()
    text[1] = json.dumps({**json.loads(text[1]), "samples": MEASURES, "teacher_samples": teacher})
    (folder / "metrics.jsonl").write_text("\n".join(text) + "\n")
    shutil.copytree(sampled, folder / "samples")
    return folder
