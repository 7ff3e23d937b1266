"""Trackers: what is refused before a run, and what each gets. Missing packages are skipped."""

from __future__ import annotations

import importlib
import json
import sqlite3
import struct
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distill import distill
from distill.running import trackers
from distill.running.recorders import Recorder
from distill.running.trackers import IDS, Tracker, check_trackers, open_trackers
from lightx2v_sgmd.files.video import write_video
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.errors import UserError
from tests.training import make_job


@pytest.fixture
def job(tiny_teacher: Path, tmp_path: Path) -> Job:
    made = make_job(tiny_teacher, tmp_path)
    made.output.dir.mkdir()
    return made


class StandIn:
    """A tracker's module in place of accelerate's class; it fails when it is told to."""

    def __init__(self) -> None:
        self.got: list[tuple[Any, ...]] = []
        self.broken = False

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.got.append(("job", values["train/iterations"], values["output/trackers"]))

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.broken:
            raise ConnectionError("the server is gone")
        self.got.append((step, values))

    def finish(self) -> None:
        self.got.append(("finish",))


def with_stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(trackers, "_started", lambda *arguments: stand_in)
    return stand_in


def test_samples_are_videos_or_images(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = with_stand_in(monkeypatch)
    kinds = SimpleNamespace(Video=lambda path: ("video", path), Image=lambda path: ("image", path))
    monkeypatch.setitem(sys.modules, "trackio", kinds)
    tracker = Tracker("trackio", job, "a-run", quiet=True)
    tracker.log_videos(4, [Path("00.mp4"), Path("01.png")])
    shown = {"samples/video_00": ("video", "00.mp4"), "samples/video_01": ("image", "01.png")}
    assert stand_in.got == [(4, shown)]


def test_a_missing_package_is_refused_before_anything_is_loaded(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "why_unusable", lambda name: "is not installed")
    job = make_job(tiny_teacher, tmp_path, "output.trackers=[tensorboard, wandb]")
    with pytest.raises(UserError) as error:
        distill(job, quiet=True)
    assert str(error.value) == (
        "output.trackers: the package wandb is not installed; "
        "pip install 'lightx2v-sgmd[wandb]', or leave wandb out"
    )
    assert not job.output.dir.exists()
    check_trackers(["tensorboard"])


def test_a_tracker_gets_numbers_and_its_failure_ends_no_run(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = with_stand_in(monkeypatch)
    tracker = Tracker("wandb", job, None, quiet=False)
    recorder = Recorder(job.output.dir, 0, trackers=[tracker], board=False)
    recorder.record({"step": 1, "nr": -1.5, "lr": {"student": 0.5}})
    recorder.extend(1, {"samples": {"optflow": 0.25}, "warnings": ["nr grows"]})
    stand_in.broken = True
    for step in (2, 3):
        recorder.record({"step": step, "nr": -1.0})
    recorder.close()
    tracker.close()
    assert stand_in.got == [
        ("job", 5, "['tensorboard']"),
        (1, {"nr": -1.5, "lr/student": 0.5}),
        (1, {"samples/optflow": 0.25}),
    ]
    said = capsys.readouterr().err
    assert said.count("wandb gets nothing more: the server is gone") == 1
    lines = (job.output.dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert not (job.output.dir / "tensorboard").exists()


def test_a_tracker_that_does_not_start_is_refused_in_a_line(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("api_key not configured\nlong trace")

    monkeypatch.setattr(trackers, "_started", fail)
    with pytest.raises(UserError) as error:
        Tracker("wandb", job, None, quiet=True)
    assert str(error.value) == (
        "output.trackers: wandb does not start: api_key not configured; run `wandb login`, or "
        "set WANDB_MODE=offline, or leave wandb out"
    )


def opened_twice(job: Job) -> list[Tracker]:
    """Opens a job's one tracker, logs, closes, and resumes; returns it and its like, closed."""
    found = []
    video = job.output.dir / "samples" / "00.mp4"
    video.parent.mkdir()
    write_video(np.zeros((5, 32, 32, 3), np.uint8), video, 8)
    for step in (1, 2):
        (tracker,) = open_trackers(job, quiet=True)
        tracker.log({"nr": -0.5 * step, "lr": {"student": 0.25}}, step)
        tracker.log_videos(step, [video])
        found.append(tracker)
        saved = json.loads((job.output.dir / IDS).read_text())
        assert saved == {tracker.name: tracker.run_id}
        tracker.close()
    return found


def tracked(job_folder: Path, teacher: Path, name: str) -> Job:
    job = make_job(teacher, job_folder, f"output.trackers=[{name}]")
    job.output.dir.mkdir(parents=True)
    return job


def logged(file: Path) -> dict[int, dict[str, Any]]:
    """The values of each step in a file of W&B: a log in LevelDB's format, of its own messages."""
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    content, at, message = file.read_bytes(), 7, b""
    found: dict[int, dict[str, Any]] = {}
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:  # the rest of a block, too short for a head
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole message, or the end of one
            record = messages.Record()
            record.ParseFromString(message)
            message = b""
            for item in record.history.item:
                name, *part = item.nested_key or [item.key]
                if not name.startswith("_") and part in ([], ["_type"]):
                    values = found.setdefault(record.history.step.num, {})
                    values[name] = json.loads(item.value_json)
    return found


@pytest.mark.slow
def test_wandb_offline(tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("HOME", tmp_path)):
        monkeypatch.setenv(name, str(value))
    job = tracked(tmp_path, tiny_teacher, "wandb")
    opened_twice(job)
    run_id = json.loads((job.output.dir / IDS).read_text())["wandb"]
    files = list((job.output.dir / "wandb").glob("offline-run-*/*.wandb"))
    assert files and {file.name for file in files} == {f"run-{run_id}.wandb"}
    assert [logged(file) for file in sorted(files)] == [
        {1: {"nr": -0.5, "lr/student": 0.25, "samples/video_00": "video-file"}},
        {2: {"nr": -1.0, "lr/student": 0.25, "samples/video_00": "video-file"}},
    ]
    assert len(list((job.output.dir / "wandb").rglob("video_00*.mp4"))) == 2


@pytest.mark.slow
def test_trackio_on_this_machine(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    job = tracked(tmp_path, tiny_teacher, "trackio")
    opened_twice(job)
    (database,) = (tmp_path / "trackio").rglob("*.db")
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    run_name = json.loads((job.output.dir / IDS).read_text())["trackio"]
    assert {row[0] for row in rows} == {run_name}, "the resumed part went on in the same run"
    values: dict[int, dict[str, Any]] = {1: {}, 2: {}}
    for _, step, metrics in rows:
        values[step] |= json.loads(metrics)
    for step, found in values.items():
        video = found.pop("samples/video_00")
        assert video["_type"] == "trackio.video"
        assert (tmp_path / "trackio" / "media" / video["file_path"]).is_file()
        assert found == {"nr": -0.5 * step, "lr/student": 0.25}
    assert len(list((tmp_path / "trackio").rglob("*.mp4"))) == 2


@pytest.mark.slow
def test_mlflow_in_the_run_folder(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    job = tracked(tmp_path, tiny_teacher, "mlflow")
    (_, last) = opened_twice(job)
    run_id = json.loads((job.output.dir / IDS).read_text())["mlflow"]
    run = mlflow.get_run(run_id)
    assert run.data.metrics == {"nr": -1.0, "lr/student": 0.25}
    videos = [path.parent.name for path in (job.output.dir / "mlruns").rglob("00.mp4")]
    assert sorted(videos) == ["step_000001", "step_000002"]
    assert run.info.artifact_uri.startswith(str(job.output.dir / "mlruns"))
    assert run.data.params["method/name"] == "sgmd"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.yaml", "prompts.txt", "run"]
