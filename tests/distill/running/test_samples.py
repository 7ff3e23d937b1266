"""Sample videos: their measures, the teacher's beside them, and where the results go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.running.recorders import Recorder
from distill.running.samples import MEASURES, SampleVideos
from distill.trainer import Trainer
from lightx2v_sgmd.families.teacher import open_teacher
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.video import read_video, small_gif
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.measures.video import measure_video
from lightx2v_sgmd.parallel import TEACHER
from lightx2v_sgmd.sampling.sampler import VideoSampler
from lightx2v_sgmd.sampling.teacher_steps import teacher_solver
from tests.tiny import make_tiny_experts
from tests.training import PROMPTS, make_job, make_trainer

COMPARED = "train.teacher_sample_steps=2"


@pytest.fixture(scope="module")
def trainer(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A trainer that no test trains."""
    return make_trainer(make_job(tiny_teacher, tmp_path_factory.mktemp("samples")))


def make_samples(trainer: Trainer, job: Job, **options: Any) -> SampleVideos:
    model = open_wan(job.teacher.path)
    return SampleVideos(job, model, trainer.strategy, trainer.batches, **options)


def test_measures_are_those_of_the_videos(
    trainer: Trainer, tiny_teacher: Path, tmp_path: Path
) -> None:
    job = make_job(tiny_teacher, tmp_path, COMPARED)
    sampled = make_samples(trainer, job).make(3)
    assert sampled is not None and len(sampled.gifs) == 4
    folders = {"step_000003": sampled.measures, "teacher": sampled.teacher}
    for folder, found in folders.items():
        files = sorted((job.output.dir / "samples" / folder).glob("*.mp4"))
        videos = [read_video(file) for file in files]
        assert len(videos) == 4
        means = [measure_video(frames, fps) for frames, fps in videos]
        for key in ("brightness", "saturation", "contrast"):  # mp4 changes them little
            expected = np.mean([values[key] for values in means])
            assert found[key] == pytest.approx(expected, abs=0.02), (folder, key)
    assert sampled.measures.keys() == {*MEASURES, "frechet"}
    assert sampled.line()["teacher_samples"].keys() == set(MEASURES)


@pytest.mark.slow
def test_a_student_that_makes_the_teachers_videos_has_no_distance(
    trainer: Trainer, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = make_samples(trainer, make_job(tiny_teacher, tmp_path, COMPARED))
    student = samples.make(1)
    assert student is not None and student.measures["frechet"] > 0.01
    monkeypatch.setattr(samples, "_student_latents", lambda: samples._teacher_latents(2))
    same = samples.make(2)
    assert same is not None
    assert same.measures.pop("frechet") == pytest.approx(0, abs=1e-6)
    assert same.measures == same.teacher != student.measures


@pytest.mark.slow
def test_the_teacher_is_sampled_once_for_a_run(
    trainer: Trainer, tiny_teacher: Path, tmp_path: Path
) -> None:
    job = make_job(tiny_teacher, tmp_path, COMPARED)
    passes: list[int] = []
    handle = trainer.strategy.networks[TEACHER].register_forward_hook(
        lambda *call: passes.append(1)
    )
    counts, lines = [], []
    for samples in (make_samples(trainer, job), make_samples(trainer, job)):  # as if resumed
        for step in (1, 2):
            passes.clear()
            sampled = samples.make(step)
            assert sampled is not None
            counts.append(len(passes))
            lines.append({**sampled.line(), "sampling_seconds": 0})
    handle.remove()
    # 4 videos in 2 steps and their features, and then the features of the student's videos.
    assert counts == [4 * 2 + 4 + 4, 4, 4, 4]
    assert lines[1:] == lines[:1] * 3


def test_a_teacher_of_two_experts_is_sampled_and_measured_by_the_expert_of_each_time(
    tmp_path: Path,
) -> None:
    teacher = make_tiny_experts(tmp_path / "model")
    settings = ("train.teacher_sample_steps=4", "teacher.guidance_scale_2=3.0")
    job = make_job(teacher, tmp_path, *settings)
    trainer, model = make_trainer(job), open_teacher(job.teacher)
    samples = SampleVideos(job, model, trainer.strategy, trainer.batches)
    stock = VideoSampler(
        model,
        teacher_solver(model, steps=4),
        (32, 32, 5),
        8.0,
        guidance_scale_2=3.0,
    )
    with torch.no_grad():
        latents = torch.cat(samples._teacher_latents(4))
    expected = stock.latents(PROMPTS, trainer.batches.sample_noise(4))
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)

    passes: list[str] = []
    for role in ("teacher", "teacher_2"):
        network = trainer.strategy.networks[role]
        network.register_forward_hook(lambda *call, role=role: passes.append(role))
    features = samples._features([latents[:1]])
    assert passes == ["teacher_2"], "the noise of the features is low"
    assert np.isfinite(features).all()


def test_what_the_job_leaves_out_is_not_measured(
    trainer: Trainer, tiny_teacher: Path, tmp_path: Path
) -> None:
    job = make_job(tiny_teacher, tmp_path, "train.teacher_sample_steps=0", "train.sample_videos=1")
    sampled = make_samples(trainer, job).make(1)
    assert sampled is not None and sampled.measures.keys() == set(MEASURES)
    assert not sampled.teacher and not (job.output.dir / "samples" / "teacher").exists()
    nothing = make_samples(trainer, job, measured=False).make(2)
    assert nothing is not None and nothing.line().keys() == {"sampling_seconds"}


def test_a_line_gets_the_samples_and_tensorboard_the_videos(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    gif = small_gif(np.zeros((40, 400, 200, 3), np.uint8), 16.0)
    recorder = Recorder(tmp_path, 0)
    for step in (1, 2):
        recorder.record({"step": step, "nr": -1.5})
    recorder.extend(2, {"samples": {"optflow": 0.25}})
    recorder.add_videos(2, [gif])
    recorder.record({"step": 3, "nr": -1.0})
    recorder.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "nr": -1.5},
        {"step": 2, "nr": -1.5, "samples": {"optflow": 0.25}},
        {"step": 3, "nr": -1.0},
    ]
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    (image,) = board.Images("samples/video_00")
    assert image.encoded_image_string == gif and (image.width, image.height) == (96, 192)
    (value,) = board.Scalars("samples/optflow")
    assert (value.step, value.value) == (2, 0.25)


def test_a_log_grows_where_it_ended(tmp_path: Path) -> None:
    for step in (1, 2):
        recorder = Recorder(tmp_path, step - 1)
        recorder.record({"step": step})
        recorder.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_features_stop_or_run_through_alike(trainer: Trainer) -> None:
    from lightx2v_sgmd.measures.network_features import middle_features

    network, noise = trainer.strategy.networks[TEACHER], trainer.batches.sample_noise(1)
    conditioning = trainer.batches.conditioning([0])[0]

    def run(x_t: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return trainer.strategy.predict(TEACHER, x_t, time, conditioning)

    model = open_teacher(trainer.job.teacher)
    whole = middle_features(model, network, run, noise, whole_pass=True)
    assert torch.equal(whole, middle_features(model, network, run, noise))
