"""Phased DMD in the training loop: which expert a phase trains, and on which samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from distill.data import Batch
from distill.model_checks import check_against_model
from distill.trainer import Trainer
from distill.updates import first_update
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, TEACHER
from lightx2v_sgmd.system.errors import UserError
from tests.families.wan.test_image_to_video import PROMPTS as TEXTS
from tests.families.wan.test_image_to_video import write_prompts
from tests.students import load_student
from tests.tiny import make_tiny_experts
from tests.training import (
    make_job,
    make_trainer,
    needs_deepspeed,
    read_trace,
    train,
    trained_latents,
    weights_of,
)
from weights import export

TIMES = (1.0, 0.9375, 5 / 6, 0.625)
PHASED = (
    "method.name=dmd2",
    "method.fake_score_updates=1",
    "method.high_noise_iterations=2",
    "teacher.guidance_scale=4",
    "teacher.guidance_scale_2=3",
)
"""Two iterations of the high-noise expert, whose batches are 0 to 3, then the low-noise one's."""


LONG = (*PHASED, "train.ema=0.9", "train.checkpoint_every=1", "train.keep_checkpoints=5")
"""Two iterations of the high-noise phase and three of the low-noise one, each with a checkpoint."""


class Whole(NamedTuple):
    """A run that was not interrupted."""

    folder: Path
    trace: list[dict[str, Any]]
    weights: dict[str, Tensor]


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    run = train(make_job(teacher, folder, *LONG))
    return Whole(folder, read_trace(run), weights_of(find_checkpoint(run)))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_experts(tmp_path_factory.mktemp("phased") / "model")


@pytest.fixture
def trainer(teacher: Path, tmp_path: Path) -> Trainer:
    return make_trainer(make_job(teacher, tmp_path, *PHASED, "train.warmup=0"))


def test_each_phase_has_its_own_steps_and_samples(trainer: Trainer) -> None:
    steps: dict[bool, set[int]] = {True: set(), False: set()}
    for index in range(16):
        batch, first = trainer.batches.micro_batch(index, 0), index < 4
        steps[first].add(trainer.batches.exit_step(index))
        assert batch.expert == (0 if first else 1)
        assert batch.phase_end == (pytest.approx(5 / 6) if first else 0.0)
        assert (batch.time >= 0.875).eq(first).all()
    assert steps == {True: {0, 1}, False: {2, 3}}


def weights(trainer: Trainer) -> dict[str, Tensor]:
    networks: Any = trainer.strategy.networks
    return {
        role: torch.cat([p.detach().flatten() for p in network.parameters()])
        for role, network in networks.items()
    }


def test_the_high_noise_expert_is_trained_first(trainer: Trainer) -> None:
    for iteration in range(3):
        before = weights(trainer)
        trainer.iterate(iteration)
        after = weights(trainer)
        moved = {role for role in before if not torch.equal(before[role], after[role])}
        number = "" if iteration < 2 else "_2"
        assert moved == {f"student{number}", f"fake_score{number}"}
    method = trainer.job.method
    assert (first_update(method, STUDENT), first_update(method, "student_2")) == (0, 2)


def test_the_average_of_the_second_expert_begins_in_its_own_phase(
    teacher: Path, tmp_path: Path
) -> None:
    """``train.ema_start`` counts from the phase's first iteration; until then it is the student."""
    settings = ("train.ema=0.9", "train.ema_start=1", "train.warmup=0")
    trainer = make_trainer(make_job(teacher, tmp_path, *PHASED, *settings))

    def average() -> Tensor:
        tensors = trainer.strategy.whole_tensors("student_2", averaged=True)
        return torch.cat([tensor.detach().flatten() for _, tensor in tensors])

    for iteration in range(3):
        trainer.iterate(iteration)
    first = weights(trainer)["student_2"]
    assert torch.equal(average(), first)
    trainer.iterate(3)
    expected = 0.9 * first + 0.1 * weights(trainer)["student_2"]
    torch.testing.assert_close(average(), expected, atol=1e-6, rtol=0)


def rolled_out(trainer: Trainer, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
    """Euler's steps written out: the exit step's data prediction, and the phase's sample."""
    exit_step, x = trainer.batches.exit_step(index), batch.noise
    for step in range(exit_step + 1):
        time = torch.full((len(x),), TIMES[step])
        with torch.set_grad_enabled(step == exit_step):
            v = trainer.strategy.predict(STUDENT, x, time, batch.conditioning).float()
        if step < exit_step:
            x = x + (TIMES[step + 1] - TIMES[step]) * v
    end = 5 / 6 if exit_step < 2 else 0.0
    return x - TIMES[exit_step] * v, x + (end - TIMES[exit_step]) * v


def noised(batch: Batch, x_s: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and the fake score's target, by Phased DMD's formulas for alpha = 1 - t, sigma = t."""
    t = batch.time.view(-1, 1, 1, 1, 1)
    s = 5 / 6 if batch.expert == 0 else 0.0
    beta = (t**2 - ((1 - t) / (1 - s)) ** 2 * s**2).sqrt()
    of_noise = ((1 - s) ** 2 * t + (1 - t) * s**2) / ((1 - s) ** 2 * beta)
    x_t = (1 - t) / (1 - s) * x_s + beta * batch.score_noise
    return x_t.detach(), (of_noise * batch.score_noise - x_s / (1 - s)).detach()


def gradients(trainer: Trainer, role: str) -> list[Tensor]:
    networks: Any = trainer.strategy.networks
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in networks[role].parameters()]
    for network in networks.values():
        network.zero_grad(set_to_none=True)
    assert any(g.abs().sum() > 0 for g in found)
    return found


@pytest.mark.parametrize(("iteration", "index"), [(0, 0), (1, 2), (2, 4), (4, 8)])
def test_gradients_are_those_of_a_plain_rewrite(
    trainer: Trainer, iteration: int, index: int
) -> None:
    strategy = trainer.strategy
    number, scale = ("", 4.0) if iteration < 2 else ("_2", 3.0)
    assert trainer.add_gradients(0, batch_index=index, iteration=iteration) == (f"student{number}",)
    ours = gradients(trainer, f"student{number}")
    batch = trainer.batches.micro_batch(index, 0)
    x0, x_s = rolled_out(trainer, batch, index)
    x_t, _ = noised(batch, x_s)
    t = batch.time.view(-1, 1, 1, 1, 1)
    with torch.no_grad():
        fake = x_t - t * strategy.predict(FAKE_SCORE, x_t, batch.time, batch.conditioning)
        cond, uncond = (
            x_t - t * strategy.predict(TEACHER, x_t, batch.time, told)
            for told in (batch.conditioning, batch.negative)
        )
        real = uncond + scale * (cond - uncond)
        g = (fake - real) / (x0 - real).abs().flatten(1).mean(1).view(-1, 1, 1, 1, 1)
    (x0 * g).flatten(1).mean(1).mean().backward()
    for mine, theirs in zip(ours, gradients(trainer, f"student{number}"), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3)

    index += 1  # the fake score's own rollout
    trained = trainer.add_fake_score_gradients(0, batch_index=index, iteration=iteration)
    assert trained == (f"fake_score{number}",)
    ours = gradients(trainer, f"fake_score{number}")
    batch = trainer.batches.micro_batch(index, 0)
    x_t, target = noised(batch, rolled_out(trainer, batch, index)[1])
    network: Any = strategy.networks[f"fake_score{number}"]
    model = open_model(trainer.job.teacher.path)
    predicted = model.predict(network, x_t, batch.time, batch.conditioning)
    ((predicted - target) ** 2).mean().backward()
    for mine, theirs in zip(ours, gradients(trainer, f"fake_score{number}"), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, 3])
def test_resuming_in_either_phase_is_exact(teacher: Path, whole: Whole, stopped: int) -> None:
    """As if the run had been killed after that checkpoint."""
    for step in range(stopped + 1, 6):
        shutil.rmtree(whole.folder / "run" / "checkpoints" / f"step_{step:06d}")
    again = train(make_job(teacher, whole.folder, *LONG))
    assert read_trace(again) == whole.trace
    found = weights_of(find_checkpoint(again))
    assert found.keys() == whole.weights.keys()
    assert [name for name, w in whole.weights.items() if not torch.equal(found[name], w)] == []


@needs_deepspeed
@pytest.mark.slow
def test_two_zero3_ranks_train_both_phases_as_one_process(
    teacher: Path, whole: Whole, tmp_path: Path
) -> None:
    settings = ("train.micro_batch=1", "parallel.strategy=zero3")
    sharded = train(make_job(teacher, tmp_path, *LONG, *settings), ranks=2)
    for ours, theirs in zip(read_trace(sharded), whole.trace, strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    found = weights_of(find_checkpoint(sharded))
    assert found.keys() == whole.weights.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, whole.weights[name], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_pair_that_starts_from_an_image_is_trained_in_phases(tmp_path: Path) -> None:
    """Wan2.2-I2V-A14B; its export runs as training's own rollout does."""
    teacher = make_tiny_experts(tmp_path / "teacher", 0.9, "image latents")
    prompts = write_prompts(tmp_path / "in", "a.png", "b.jpg")
    settings = (*PHASED, f"data.prompts={prompts}", "video.width=48", "train.iterations=3")
    job = make_job(teacher, tmp_path, *settings)
    run = train(job)
    roles = [row["grad_norm"].keys() for row in read_trace(run)]
    first, second = {"student", "fake_score"}, {"student_2", "fake_score_2"}
    assert roles == [first, first, second]
    engine = load_student(export(run, "diffusers", tmp_path / "out", dtype="fp32", quiet=True))
    size = (32, 48, 5)
    told = engine.with_images(engine.encode(TEXTS[:1]), [(tmp_path / "in" / "a.png", size)])
    noise = engine.noise(3, engine.latent_shape(*size))[None]
    made = engine.denoise(told, [3], size)
    torch.testing.assert_close(made, trained_latents(job, 3, noise), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("schedule.solver=renoise",), "phases need schedule.solver euler, not renoise"),
        (("train.iterations=2",), "2 leaves none of the 2 iterations to the low-noise expert"),
    ],
)
def test_jobs_without_two_phases_are_refused(
    teacher: Path, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    job = make_job(teacher, tmp_path, *PHASED, *settings)
    with pytest.raises(UserError, match=message):
        check_against_model(job, open_model(teacher))


def test_phases_need_two_experts(tiny_teacher: Path, tmp_path: Path) -> None:
    job = make_job(tiny_teacher, tmp_path, *PHASED[:3])
    with pytest.raises(UserError, match="method.high_noise_iterations: .* has one network"):
        check_against_model(job, open_model(tiny_teacher))
