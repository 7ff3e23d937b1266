"""The page shows a run that is being written, and does not open everything."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lightx2v_sgmd.apps.watch.reading import WatchedRun
from lightx2v_sgmd.files.video import write_frames
from lightx2v_sgmd.system.errors import UserError
from tests.apps.watch.conftest import write_line, write_samples


def test_progress_speed_and_samples(run: Path) -> None:
    state = WatchedRun.open(run).state()
    assert (state["step"], state["iterations"], state["finished"]) == (3, 5, False)
    assert (state["seconds_per_iteration"], state["seconds_left"]) == (2.0, 4.0)
    assert state["samples"] == [
        {
            "folder": name,
            "videos": ["00.mp4", "01.mp4"],
            "changed": (run / "samples" / name).stat().st_mtime,
        }
        for name in ("teacher", "step_000002")
    ]
    assert state["prompts"][0] == "a red circle moving left" and state["warnings"] == []
    json.dumps(state)


def test_a_run_is_followed_while_it_writes(run: Path) -> None:
    watched = WatchedRun.open(run)
    assert watched.state()["step"] == 3
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "fis')  # not whole yet
    assert watched.state()["step"] == 3
    with (run / "metrics.jsonl").open("a") as file:
        file.write('her": 1.0}\n')
    write_line(run, 5, warnings={"motion": "the samples move less"})
    write_samples(run, "step_000005", 200)
    state = watched.state()
    assert state["finished"] and state["seconds_left"] == 0
    assert state["warnings"] == [{"step": 5, "name": "motion", "text": "the samples move less"}]
    assert [s["folder"] for s in state["samples"]] == ["teacher", "step_000005", "step_000002"]


def test_a_run_without_metrics(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    state = WatchedRun.open(run).state()
    assert state["step"] == 0 and state["curves"] == [] and state["seconds_left"] is None


def test_a_log_with_strange_lines_is_shown(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": "x"}\n{"fisher": 1}\n{"step": 4, "warnings": 7, "nr": "?"}\n')
    assert WatchedRun.open(run).state()["step"] == 4


def test_only_sample_videos_are_opened(run: Path) -> None:
    watched = WatchedRun.open(run)
    assert watched.video("step_000002", "00.mp4") == run / "samples" / "step_000002" / "00.mp4"
    (run / "samples" / "step_000009").mkdir()
    os.symlink(run / "job.yaml", run / "samples" / "step_000009" / "00.mp4")
    for folder, name in (
        ("..", "job.yaml"),
        ("step_000002", "../../job.yaml"),
        ("step_000002", "02.mp4"),
        ("step_000009", "00.mp4"),
        ("", "00.mp4"),
    ):
        assert watched.video(folder, name) is None, (folder, name)


def test_links_are_neither_listed_nor_opened(run: Path, tmp_path: Path) -> None:
    watched, outside = WatchedRun.open(run), tmp_path / "outside"
    shutil.copytree(run / "samples", outside)
    (run / "samples" / "step_000009").symlink_to(outside / "step_000002")
    (run / "samples" / "teacher" / "02.mp4").symlink_to(outside / "teacher" / "00.mp4")
    listed = watched.sample_folders()
    assert listed == dict.fromkeys(("teacher", "step_000002"), ["00.mp4", "01.mp4"])
    assert watched.video("step_000009", "00.mp4") is None
    shutil.rmtree(run / "samples")
    (run / "samples").symlink_to(outside)
    assert watched.sample_folders() == {} and watched.video("teacher", "00.mp4") is None


def test_images_are_samples_too(run: Path) -> None:
    write_frames(np.zeros((1, 8, 8, 3), np.uint8), run / "samples" / "step_000003" / "00.png", 1.0)
    assert WatchedRun.open(run).sample_folders()["step_000003"] == ["00.png"]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="is not a training run, it has no job.yaml; name the output"
    ):
        WatchedRun.open(tmp_path)
