"""Predictions of student, teacher and fake score in an iteration, and what is kept of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.counting import PassCounter
from distill.predictions import loss_sample, student_sample, teacher_x0
from lightx2v_sgmd.flow import add_noise, guide, x0_from_velocity
from lightx2v_sgmd.interpolants import VariancePreserving
from lightx2v_sgmd.parallel import STUDENT, TEACHER
from lightx2v_sgmd.rollout import rollout
from tests.training import make_job, make_trainer


def test_a_student_that_is_noised_anew_rolls_out_so(tiny_teacher: Path, tmp_path: Path) -> None:
    """Two steps by hand: a data prediction, new noise, and the data prediction of that."""
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, "schedule.solver=renoise"))
    batch, schedule = trainer.batches.micro_batch(0, 0), trainer.job.steps
    first, second = (time.expand(2) for time in schedule.times[:2])

    def x0(x_t: Tensor, time: Tensor) -> Tensor:
        velocity = trainer.strategy.predict(STUDENT, x_t, time, batch.conditioning)
        return x0_from_velocity(x_t, velocity, time)

    with torch.no_grad():
        later = add_noise(x0(batch.noise, first), batch.fresh_noise(0), second)
        expected = x0(later, second)
    found, _ = student_sample(trainer.strategy, batch, schedule, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.requires_grad


def test_a_student_rolls_out_on_its_own_path_to_noise(tiny_teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, "schedule.solver=renoise"))
    batch, schedule = trainer.batches.micro_batch(0, 0), trainer.job.steps
    path = VariancePreserving(torch.linspace(0.999, 0.01, 1000), "v")
    trainer.strategy.interpolant = path

    def predict(x_t: Tensor, time: Tensor) -> Tensor:
        return trainer.strategy.predict(STUDENT, x_t, time, batch.conditioning)

    with torch.no_grad():
        noise = batch.fresh_noise
        expected = rollout(predict, batch.noise, schedule, 1, interpolant=path, fresh_noise=noise)
    found, _ = student_sample(trainer.strategy, batch, schedule, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_teacher_is_guided_in_one_batch(tiny_teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, "train.micro_batch=3"))
    batch = trainer.batches.micro_batch(0, 0)
    x_t = batch.noise
    with torch.no_grad():
        cond, uncond = (
            trainer.strategy.predict(TEACHER, x_t, batch.time, told)
            for told in (batch.conditioning, batch.negative)
        )
    expected = x0_from_velocity(x_t, guide(cond, uncond, 8.0), batch.time)
    torch.testing.assert_close(
        teacher_x0(trainer.strategy, x_t, batch, 8.0), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("method", ["sgmd", "sid"])
def test_the_teacher_keeps_no_graph_that_the_method_does_not_use(
    method: str, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would change no gradient, and a large teacher's would fill the memory."""
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, f"method={{name: {method}}}"))
    strategy: Any = trainer.strategy
    predict, seen = strategy.predict, []

    def noted(role: str, x_t: Tensor, *args: Any, **options: Any) -> Tensor:
        if role == TEACHER:
            seen.append((torch.is_grad_enabled(), x_t.requires_grad))
        found: Tensor = predict(role, x_t, *args, **options)
        return found

    monkeypatch.setattr(strategy, "predict", noted)
    trainer.iterate(0)
    assert seen == [(method == "sid", method == "sid")]


def test_a_rollout_for_the_fake_score_alone_keeps_no_graph(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("method={name: dmd2, fake_score_updates: 1}",)
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, *settings))
    strategy: Any = trainer.strategy
    predict, seen = strategy.predict, []

    def noted(role: str, *args: Any, **options: Any) -> Tensor:
        if role == STUDENT:
            seen.append(torch.is_grad_enabled())
        found: Tensor = predict(role, *args, **options)
        return found

    monkeypatch.setattr(strategy, "predict", noted)
    students, fake_scores = trainer.updates(0)
    fake_scores[1](0)
    assert seen and not any(seen)
    students[1](0)
    assert seen[-1]


def test_a_sample_has_a_discriminator_only_where_it_is_asked_for(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    found = []
    for method in ("sgmd", "adm"):
        trainer = make_trainer(make_job(tiny_teacher, tmp_path, f"method={{name: {method}}}"))
        batch = trainer.batches.micro_batch(0, 0)
        tensors = batch, batch.noise, batch.noise, batch.noise, None
        for update in (None, False, True):
            sample = loss_sample(trainer.strategy, *tensors, update)
            found.append(sample.discriminate is not None)
    assert found == [False, False, False, False, True, True]


def test_guidance_of_one_runs_no_unconditional_pass(tiny_teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, "teacher.guidance_scale=1"))
    counter = PassCounter(trainer.strategy.networks, samples=2)
    trainer.iterate(0)
    assert counter.take()["forwards"]["teacher"] == 1
