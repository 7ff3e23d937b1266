"""Whole runs in this process: what they leave, resuming, and what stands in the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from distill import distill
from distill.counting import COUNTS
from distill.running.recorders import Recorder
from distill.running.samples import SampleVideos
from distill.trainer import Trainer
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_of
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import STUDENT
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import WEIGHTS
from tests.training import assert_same_run, make_job, make_trainer, read_trace


def folders(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def finished(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """An uninterrupted run of six iterations."""
    settings = ["train.iterations=6", "train.checkpoint_every=2", "train.sample_every=3"]
    job = make_job(tiny_teacher, tmp_path_factory.mktemp("finished"), *settings)
    assert distill(job, quiet=True) == job.output.dir
    return job


def test_the_checkpoint(finished: Job) -> None:
    folder = store.find_checkpoint(finished.output.dir)
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {
        *("manifest.json", "trainer.json", "job.yaml"),
        *("student.safetensors", "student_ema.safetensors"),
        *(f"state/{role}.00000-of-00001.safetensors" for role in ("student", "fake_score")),
    }
    assert json.loads((folder / "trainer.json").read_text())["step"] == 6
    assert load_job(folder / "job.yaml") == finished
    with safe_open(folder / "student_ema.safetensors", "pt") as file:
        assert schedule_of(file.metadata()) == finished.steps
        assert all(file.get_tensor(name).dtype == torch.float32 for name in file.keys())


def copy(finished: Job, folder: Path, *changes: str) -> Job:
    """The finished run, cut back to its checkpoint of step 4, and its job with changes."""
    run = folder / "run"
    shutil.copytree(finished.output.dir, run)
    shutil.rmtree(run / "checkpoints" / "step_000006")
    return load_job(finished.output.dir / "job.yaml", [f"output.dir={run}", *changes])


def test_resuming_gives_the_same_run(finished: Job, tmp_path: Path) -> None:
    job = copy(finished, tmp_path)
    with (job.output.dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "fi')  # cut off by a crash
    distill(job, quiet=True)
    assert_same_run(job.output.dir, finished.output.dir)


def test_a_finished_run_has_nothing_to_do(
    finished: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished.output.dir / "metrics.jsonl").stat().st_mtime_ns
    assert distill(finished) == finished.output.dir
    assert (finished.output.dir / "metrics.jsonl").stat().st_mtime_ns == before
    assert "already has all 6 iterations" in capsys.readouterr().err


def test_a_run_can_be_made_longer(finished: Job, tmp_path: Path) -> None:
    job = copy(finished, tmp_path, "train.iterations=5", "train.keep_checkpoints=1")
    distill(job, quiet=True)
    assert folders(job.output.dir) == ["step_000005"]
    assert read_trace(job.output.dir) == read_trace(finished.output.dir)[:5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher.guidance_scale=3", r"teacher.guidance_scale: the job says 3.0, but .* with 8.0"),
        ("train.ema=0.5", r"train.ema: the job says 0.5, but .* with 0.9"),
        ("train.micro_batch=3", r"train.micro_batch: .*global batch of 3, not the 2 of"),
        ("method.lambda=0.3", r"method.lambda: the job says 0.3, but .* with 0.1"),
    ],
)
def test_resuming_another_job_is_refused(
    finished: Job, tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        distill(copy(finished, tmp_path, change), quiet=True)


def test_resuming_with_other_prompts_is_refused(finished: Job, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("circle\n")
    job = copy(finished, tmp_path, f"data.prompts={tmp_path / 'other.txt'}")
    with pytest.raises(UserError, match="data.prompts: the prompts are not those that"):
        distill(job, quiet=True)


def test_a_damaged_checkpoint_is_set_aside(
    finished: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.output.dir, run)
    weights = run / "checkpoints" / "step_000006" / "student.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    job = load_job(run / "job.yaml", [f"output.dir={run}"])
    distill(job)
    assert "damaged" in capsys.readouterr().err
    assert read_trace(run) == read_trace(finished.output.dir)
    assert folders(run) == ["step_000004", "step_000006", "step_000006.damaged"]


def test_never_and_paths(finished: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already contains a run; resume it"):
        distill(finished, resume="never", quiet=True)
    job = load_job(finished.output.dir / "job.yaml", [f"output.dir={tmp_path / 'new'}"])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        distill(job, resume=str(tmp_path / "nowhere"), quiet=True)
    distill(job, resume=str(finished.output.dir / "checkpoints" / "step_000004"), quiet=True)
    assert read_trace(tmp_path / "new") == read_trace(finished.output.dir)[4:]
    older = tmp_path / "new" / "checkpoints" / "step_000002"
    shutil.copytree(finished.output.dir / "checkpoints" / "step_000004", older)
    with pytest.raises(UserError, match="step_000006, which is newer than step_000002"):
        distill(job, resume=str(older), quiet=True)


class Fault:
    """Makes ``os.fsync`` fail from one checkpoint on."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0
        self.original = os.fsync

    def __call__(self, handle: int) -> None:
        self.calls += "/checkpoints" in os.readlink(f"/proc/self/fd/{handle}")
        if self.calls > 12:  # the first checkpoint has 7 files and 3 folders to sync
            raise OSError(self.number, os.strerror(self.number))
        self.original(handle)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "the disk is full; free some space"), (errno.EACCES, "may not be written")],
)
def test_a_full_disk_while_saving(
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    message: str,
) -> None:
    job = make_job(tiny_teacher, tmp_path, "train.checkpoint_every=1", "train.iterations=3")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Fault(number))
        with pytest.raises(UserError, match=message):
            distill(job, quiet=True)
    assert folders(job.output.dir) == ["step_000001"]
    store.verify(job.output.dir / "checkpoints" / "step_000001")
    distill(job, quiet=True)  # with room again, it goes on
    assert [row["step"] for row in read_trace(job.output.dir)] == [1, 2, 3]


def test_no_room_is_said_before_anything_is_loaded(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tiny_teacher, tmp_path)
    usage: Any = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="free, but a checkpoint takes"):
        distill(job, quiet=True)
    assert not job.output.dir.exists()


def test_the_size_of_a_checkpoint_is_known_beforehand(finished: Job) -> None:
    from distill.running.saving import checkpoint_parts

    folder = store.find_checkpoint(finished.output.dir)
    whole, slices = checkpoint_parts(finished, open_wan(finished.teacher.path))
    for pattern, estimate in (("*.safetensors", whole), ("state/*.safetensors", slices)):
        written = sum(p.stat().st_size for p in folder.glob(pattern))
        assert estimate == pytest.approx(written, rel=0.1)


def test_output_that_is_a_file(tiny_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        distill(make_job(tiny_teacher, tmp_path), quiet=True)


@pytest.mark.slow
def test_an_iteration_is_dropped_between_its_micro_batches(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["train.iterations=3", "train.micro_batch=1", "train.accumulation=12"]
    straight = make_job(tiny_teacher, tmp_path / "straight", *settings)
    job = make_job(tiny_teacher, tmp_path / "broken", *settings)
    distill(straight, quiet=True)
    add_gradients, began = Trainer.add_gradients, []

    def interrupting(self: Trainer, micro: int, batch_index: int, iteration: int) -> Any:
        began.append((iteration, micro))
        if (iteration, micro) == (1, 2):
            os.kill(os.getpid(), signal.SIGUSR1)
        return add_gradients(self, micro, batch_index, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "add_gradients", interrupting)
        with pytest.raises(KeyboardInterrupt):
            distill(job, quiet=True)
    assert began[-1] == (1, 2)
    assert folders(job.output.dir) == ["step_000001"]
    distill(job, quiet=True)
    assert_same_run(job.output.dir, straight.output.dir)


@pytest.mark.slow
def test_an_iteration_goes_on_after_the_updates_that_it_has_had(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["train.iterations=3", "method.name=dmd2", "train.checkpoint_every=1"]
    straight = make_job(tiny_teacher, tmp_path / "straight", *settings)
    job = make_job(tiny_teacher, tmp_path / "broken", *settings)
    distill(straight, quiet=True)
    add_gradients, began = Trainer.add_fake_score_gradients, []
    moments = {9, 11}  # the second iteration draws 6 to 11

    def interrupting(self: Trainer, micro: int, batch_index: int, iteration: int) -> Any:
        began.append(batch_index)
        if batch_index in moments:
            moments.remove(batch_index)
            os.kill(os.getpid(), signal.SIGUSR1)
        return add_gradients(self, micro, batch_index, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "add_fake_score_gradients", interrupting)
        for batch_index in (9, 11):
            with pytest.raises(KeyboardInterrupt):
                distill(job, quiet=True)
            assert began[-1] == batch_index
            state = store.read_trainer_state(job.output.dir / "checkpoints" / "step_000001")
            assert state["partial_iteration"]["done"] == batch_index - 6
    distill(job, quiet=True)
    assert_same_run(job.output.dir, straight.output.dir)


def test_a_stop_is_seen_within_a_sample(tiny_teacher: Path, tmp_path: Path) -> None:
    job = make_job(tiny_teacher, tmp_path)
    trainer, forwards = make_trainer(job), []
    student = trainer.strategy.networks[STUDENT]
    student.register_forward_pre_hook(lambda *_: forwards.append(1))
    parts = job, open_wan(job.teacher.path), trainer.strategy, trainer.batches
    assert SampleVideos(*parts, stop=lambda: len(forwards) >= 2).make(1) is None
    assert len(forwards) == 2 and not job.output.dir.exists()


@pytest.mark.slow
def test_checkpoints_by_the_clock(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock counts minutes: 20 s pass in each iteration."""
    import distill.running.run as running

    settings = ["train.iterations=6", "train.keep_checkpoints=9", "train.checkpoint_minutes=0.75"]
    job = make_job(tiny_teacher, tmp_path, *settings)
    elapsed = [0.0]
    record = running._record

    def passing(*args: Any) -> bool:
        elapsed[0] += 20
        return record(*args)

    monkeypatch.setattr(running, "_record", passing)
    monkeypatch.setattr(time, "monotonic", lambda: elapsed[0])
    distill(job, quiet=True)
    assert folders(job.output.dir) == ["step_000004", "step_000006"]


@pytest.mark.slow
def test_interrupted_and_resumed_in_this_process(
    finished: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load_job(finished.output.dir / "job.yaml", [f"output.dir={tmp_path / 'run'}"])
    record = Recorder.record

    def interrupting(self: Recorder, line: dict[str, Any], more: bool) -> None:
        record(self, line, more)
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "record", interrupting)
        with pytest.raises(KeyboardInterrupt):
            distill(job, quiet=True)
    assert folders(job.output.dir)[-1] == "step_000002"
    distill(job, quiet=True)
    assert read_trace(job.output.dir) == read_trace(finished.output.dir)


@pytest.mark.slow
def test_a_single_file_of_weights_with_its_base(tiny_teacher: Path, tmp_path: Path) -> None:
    """The same run as from the whole folder."""
    file = tmp_path / "variant.safetensors"
    shutil.copy(tiny_teacher / WEIGHTS, file)
    named = [f"teacher.path={file}", f"teacher.base={tiny_teacher}", "train.iterations=1"]
    whole = distill(make_job(tiny_teacher, tmp_path / "whole", "train.iterations=1"), quiet=True)
    single = distill(make_job(tiny_teacher, tmp_path / "single", *named), quiet=True)
    assert read_trace(single) == read_trace(whole)


def test_the_run_folder(finished: Job) -> None:
    run = finished.output.dir
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0].keys() == {
        *("step", "fisher", "nr", "rc", "grad_norm", "lr", "exit_step", "seconds", *COUNTS),
        *("forward_equivalents", "cpu_seconds", "peak_memory_gib"),
    }
    assert lines[0]["grad_norm"].keys() == {"student", "fake_score"}
    assert lines[0]["forwards"]["teacher"] == 2
    assert 0 < lines[0]["peak_memory_gib"] < 100
    assert load_job(run / "job.yaml") == finished
    seen = json.loads((run / "environment.json").read_text())
    assert seen["packages"]["torch"] == torch.__version__ and seen["processes"] == 1
    assert list((run / "tensorboard").iterdir())
    assert sorted(p.name for p in (run / "samples").iterdir()) == [
        "step_000003",
        "step_000006",
    ]
    videos = sorted((run / "samples" / "step_000006").iterdir())
    assert [v.name for v in videos] == ["00.mp4", "01.mp4", "02.mp4", "03.mp4"]
    assert folders(run) == ["step_000004", "step_000006"]
