"""Training a student of two experts: which one learns, from which score times, and resuming it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.model_checks import check_against_model
from distill.updates import updates_of_experts
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.files.student_weights import student_files
from lightx2v_sgmd.files.tensors.safetensors_files import read_headers
from lightx2v_sgmd.flow import sample_score_sigmas, sample_sigmas_between
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import make_tiny_experts
from tests.training import assert_same_run, make_job, make_trainer, read_trace, train

BOUNDARY = 0.875
HIGH_STEPS = (0, 1)
"""The steps 1000 and 937.5 are the first expert's, 833.333 and 625 are the second's."""
LORA = ("student.train=lora", "student.lora.rank=2", "fake_score.train=lora")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_experts(tmp_path_factory.mktemp("experts") / "model", BOUNDARY)


def weights(trainer: Any) -> dict[str, list[Tensor]]:
    networks = trainer.strategy.networks
    return {role: [p.detach().clone() for p in n.parameters()] for role, n in networks.items()}


def changed(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> set[str]:
    return {
        role
        for role, tensors in before.items()
        if any(not torch.equal(a, b) for a, b in zip(tensors, after[role], strict=True))
    }


@pytest.mark.parametrize("settings", [(), LORA], ids=["full", "lora"])
def test_the_expert_of_the_exit_step_is_trained(
    teacher: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    trainer = make_trainer(make_job(teacher, tmp_path, "train.iterations=7", *settings))
    names = set()
    for iteration in range(6):
        before = weights(trainer)
        average = [t.clone() for _, t in trainer.strategy.whole_tensors("student_2", averaged=True)]
        result = trainer.iterate(iteration)
        number = "" if result.exit_step in HIGH_STEPS else "_2"
        names.add(number)
        assert changed(before, weights(trainer)) == {f"student{number}", f"fake_score{number}"}
        assert set(result.grad_norm) == {f"student{number}", f"fake_score{number}"}
        after = [t for _, t in trainer.strategy.whole_tensors("student_2", averaged=True)]
        still = all(torch.equal(a, b) for a, b in zip(average, after, strict=True))
        assert still == (number == "")
    assert names == {"", "_2"}, "six iterations train both"


def test_score_times_stay_in_the_trained_experts_interval(teacher: Path, tmp_path: Path) -> None:
    batches = make_trainer(make_job(teacher, tmp_path, "train.micro_batch=8")).batches
    seen = set()
    for index in range(12):
        batch = batches.micro_batch(index, 0)
        assert batch.expert == int(batches.exit_step(index) not in HIGH_STEPS)
        assert (1000 * batch.time >= 1000 * BOUNDARY).eq(batch.expert == 0).all()
        assert ((batch.time >= 0.02) & (batch.time <= 0.98)).all()
        seen.add(batch.expert)
    assert seen == {0, 1}


def test_times_of_an_interval_have_the_distribution_of_all_that_lie_there() -> None:
    u = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    every = sample_score_sigmas(u, 5.0, 0.02, 0.98)
    for low, high in ((0.0, 0.875), (0.875, 1.0)):
        ours = sample_sigmas_between(u, 5.0, low, high, 0.02, 0.98)
        theirs = every[(every >= low) & (every < high)]
        quantiles = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
        torch.testing.assert_close(
            ours.quantile(quantiles), theirs.quantile(quantiles), atol=0.01, rtol=0
        )
    assert torch.equal(sample_sigmas_between(u, 5.0, 0.0, 1.0, 0.02, 0.98), every)


def test_each_expert_has_its_own_guidance(teacher: Path, tmp_path: Path) -> None:
    settings = ("teacher.guidance_scale=4", "teacher.guidance_scale_2=3")
    trainer = make_trainer(make_job(teacher, tmp_path, *settings))
    assert [trainer._guidance(0, expert) for expert in (0, 1)] == [4, 3]


@pytest.mark.parametrize(
    "settings", [(), ("method.name=dmd2", "method.fake_score_updates=2")], ids=["sgmd", "dmd2"]
)
def test_updates_of_each_expert_are_counted(
    teacher: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """Adam's bias correction needs them after a resume."""
    job = make_job(teacher, tmp_path, *settings, "train.iterations=5")
    trainer = make_trainer(job)
    counts: Counter[str] = Counter()
    for iteration in range(5):
        counts.update(trainer.iterate(iteration).stepped)
    expected = updates_of_experts(job.method, 5, 2, trainer.batches.expert)
    assert {role: n for role, n in expected.items() if n} == dict(counts)
    assert len(expected) == 4


def test_a_step_that_is_not_true_is_counted_soon(teacher: Path, tmp_path: Path) -> None:
    method = make_job(teacher, tmp_path).method
    asked: list[int] = []

    def expert_of(batch_index: int) -> int:
        asked.append(batch_index)
        return int(batch_index >= 10**9 - 7)

    done = updates_of_experts(method, 10**9, 2, expert_of)
    assert len(asked) == 2 * 100_000, "one for the student, one for the fake score"
    assert done["student_2"] == done["fake_score_2"] == 7


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(teacher: Path, tmp_path: Path) -> None:
    """Both experts are trained before it stops and after; seed 7 draws such exit steps."""
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    for folder in (straight, parts):
        folder.mkdir()
    settings = ("train.micro_batch=1", "train.checkpoint_every=3", "train.seed=7")
    whole = train(make_job(teacher, straight, *settings, "train.iterations=5"))
    train(make_job(teacher, parts, *settings, "train.iterations=3"))
    resumed = train(make_job(teacher, parts, *settings, "train.iterations=5"))
    assert_same_run(resumed, whole)
    low_noise = [row["exit_step"] not in HIGH_STEPS for row in read_trace(resumed)]
    assert {*low_noise[:3]} == {*low_noise[3:]} == {True, False}
    checkpoint = find_checkpoint(resumed)
    for averaged in (False, True):
        first, second = (
            read_headers(student_files(checkpoint, averaged, expert)) for expert in (0, 1)
        )
        assert first.tensors.keys() == second.tensors.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("method.name=adm",), "method.name: adm trains a discriminator"),
        (("train.exit_step_per=micro_batch",), "train.exit_step_per: micro_batch is not for this"),
        (("schedule.base=[1000]",), "schedule.base: none of the steps 1000 is the low-noise"),
        (("train.sigma_min=0.9",), "train.sigma_min: 0.9 leaves no score times"),
        (("train.sigma_max=0.8",), "train.sigma_max: 0.8 leaves no score times"),
        (("schedule.shift=8",), "schedule.shift: 8 is not that of a student of Wan2.2-A14B.*use 5"),
    ],
)
def test_jobs_that_cannot_train_two_experts_are_refused(
    teacher: Path, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    job = make_job(teacher, tmp_path, *settings)
    with pytest.raises(UserError, match=message):
        check_against_model(job, open_model(teacher))


def test_a_second_guidance_needs_a_second_expert(tiny_teacher: Path, tmp_path: Path) -> None:
    job = make_job(tiny_teacher, tmp_path, "teacher.guidance_scale_2=3")
    with pytest.raises(UserError, match="teacher.guidance_scale_2: .* no second expert"):
        check_against_model(job, open_model(tiny_teacher))
