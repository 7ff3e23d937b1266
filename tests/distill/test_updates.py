"""The order of a run's updates: which batches they use, and their learning rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.trainer import Trainer
from distill.updates import first_batch, first_update, learning_rate_factor, updates_done
from lightx2v_sgmd.job.schema import Train
from lightx2v_sgmd.methods import ADM, ADP, DMD2, DMDX, SGMD, Method
from lightx2v_sgmd.methods.base import Discriminator, Stage
from lightx2v_sgmd.parallel import DISCRIMINATOR, FAKE_SCORE, STUDENT, expert_role
from tests.training import make_job, make_trainer

HEADS = Discriminator(head_every=1, head_channels=32)
TWO_STAGES = DMDX(adp=ADP(pixel_weight=0), adm=ADM(fake_score_updates=2), pretraining=3)


def test_each_stage_counts_the_batches_that_it_uses() -> None:
    assert [first_batch(SGMD(), i) for i in range(3)] == [0, 1, 2]
    assert [first_batch(DMD2(), i) for i in range(3)] == [0, 6, 12]
    assert [first_batch(ADM(), i) for i in range(3)] == [0, 2, 4]
    assert [first_batch(ADP(pixel_weight=0), i) for i in range(3)] == [0, 1, 2]
    assert [first_batch(TWO_STAGES, i) for i in range(6)] == [0, 1, 2, 3, 6, 9]


def test_pretraining_sees_every_pair_in_turn(tiny_teacher: Path, tmp_path: Path) -> None:
    """The batches of two stages, as the trainer asks for them."""
    job = make_job(tiny_teacher, tmp_path, "train.iterations=6")
    trainer = make_trainer(job)
    trainer = Trainer(replace(job, method=TWO_STAGES), trainer.strategy, trainer.batches)
    used = [[index for index, _ in trainer.updates(i)] for i in range(6)]
    assert used == [[0], [1], [2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_warm_up_begins_with_a_role_s_first_update() -> None:
    assert first_update(TWO_STAGES, STUDENT) == first_update(TWO_STAGES, DISCRIMINATOR) == 0
    assert first_update(TWO_STAGES, FAKE_SCORE) == 3
    assert first_update(SGMD(), FAKE_SCORE) == 0
    for role in (STUDENT, FAKE_SCORE):
        second = expert_role(role, 1)
        assert first_update(DMD2(high_noise_iterations=7), role) == 0
        assert first_update(DMD2(high_noise_iterations=7), second) == 7
        assert first_update(SGMD(), second) == 0
    train = Train(iterations=100, warmup=4)
    first = first_update(TWO_STAGES, FAKE_SCORE)
    factors = [learning_rate_factor(i, train, first) for i in range(3, 9)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1]


def test_a_late_role_warms_up_in_the_loop(tiny_teacher: Path, tmp_path: Path) -> None:
    job = make_job(tiny_teacher, tmp_path, "train.warmup=4", "train.iterations=6")
    method = replace(TWO_STAGES, adm=ADM(), discriminator=HEADS)
    rates: dict[int, dict[str, float]] = {}
    trainer = make_trainer(replace(job, method=method))

    def pretended(role: str, lr: float) -> float:
        rates.setdefault(iteration, {})[role] = lr
        return 1.0

    trainer.strategy.step = pretended  # type: ignore[method-assign]
    nothing: Any = lambda micro, batch_index, iteration: (STUDENT, FAKE_SCORE)  # noqa: E731
    trainer.add_gradients = nothing  # type: ignore[method-assign]
    trainer.add_fake_score_gradients = nothing  # type: ignore[method-assign]
    trainer.losses.add_to = lambda result, index: None  # type: ignore[method-assign]
    trainer.strategy.gradient_norm = lambda role: 1.0  # type: ignore[method-assign]
    for iteration in (3, 4, 5):
        trainer.iterate(iteration)
    assert [rates[i][FAKE_SCORE] for i in (3, 4, 5)] == pytest.approx([2.5e-5, 5e-5, 7.5e-5])
    assert [rates[i][STUDENT] for i in (3, 4, 5)] == pytest.approx([1e-5] * 3)  # a tenth, warm


@pytest.mark.parametrize(
    ("method", "whole"),
    [(ADM(discriminator=HEADS), True), (DMD2(fake_score_updates=1), False)],
    ids=["adm", "dmd2"],
)
def test_the_fake_score_of_adm_learns_from_whole_rollouts(
    method: Any, whole: bool, tiny_teacher: Path, tmp_path: Path
) -> None:
    """All four steps in its own update; the student's still ends where the draw says."""
    trainer = make_trainer(replace(make_job(tiny_teacher, tmp_path), method=method))
    trainer.batches.exit_step = lambda exit_index: 1  # type: ignore[method-assign]
    steps: list[str] = []
    predict = trainer.strategy.predict

    def noted(role: str, *args: Any, **options: Any) -> Any:
        steps.append(role)
        return predict(role, *args, **options)

    trainer.strategy.predict = noted  # type: ignore[method-assign]
    trainer.add_fake_score_gradients(0, batch_index=1, iteration=0)
    assert steps.count(STUDENT) == (4 if whole else 2)
    steps.clear()
    trainer.add_gradients(0, batch_index=0, iteration=0)
    assert steps.count(STUDENT) == 2


def test_updates_by_role() -> None:
    assert updates_done(SGMD(), 3) == {"student": 3, "fake_score": 3}
    assert updates_done(DMD2(), 3) == {"student": 3, "fake_score": 15}
    assert updates_done(ADM(), 3) == {"student": 3, "fake_score": 3, "discriminator": 3}
    assert updates_done(ADP(pixel_weight=0), 3) == {"student": 3, "discriminator": 3}
    dmdx = DMDX(adp=ADP(pixel_weight=0), pretraining=2)
    assert updates_done(dmdx, 3) == {"student": 3, "fake_score": 1, "discriminator": 3}
    pixels = DMDX(adp=ADP(vision_encoder="sam"), pretraining=2)
    assert updates_done(pixels, 3)["pixel_discriminator"] == 2


class Ending(Method):
    """Two stages of pairs, and one that ends before the run does."""

    name = "ending"

    @property
    def stages(self) -> tuple[Stage, ...]:
        pairs = ADP(pixel_weight=0)
        return Stage(pairs, 2), Stage(pairs, 1), Stage(DMD2(fake_score_updates=2), 4)


def test_stages_that_end_before_the_run() -> None:
    assert [first_batch(Ending(), i) for i in range(9)] == [0, 1, 2, 3, 6, 9, 12, 15, 18]
    assert first_update(Ending(), DISCRIMINATOR) == 0 and first_update(Ending(), FAKE_SCORE) == 3
