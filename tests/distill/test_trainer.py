from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.counting import PassCounter
from distill.loss_terms import NotFiniteError
from distill.observed import StopOnRequest
from distill.predictions import teacher_x0
from distill.trainer import Trainer
from distill.updates import learning_rate_factor
from lightx2v_sgmd.flow import guide, x0_from_velocity
from lightx2v_sgmd.job.schema import Train
from lightx2v_sgmd.methods import SGMD
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, TEACHER
from tests.training import make_job, make_trainer


def test_forwards_of_an_iteration(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, "train.accumulation=2"))
    monkeypatch.setattr(trainer.batches, "exit_step", lambda iteration: iteration)
    counter = PassCounter(trainer.strategy.networks, samples=4)
    for exit_step in range(4):
        trainer.iterate(exit_step)
        assert counter.take()["forwards"] == {
            "student": exit_step + 1,
            "teacher": 2,
            "fake_score": 1,
        }


def test_warm_up_is_linear_then_constant(tiny_teacher: Path, tmp_path: Path) -> None:
    job = make_job(
        tiny_teacher, tmp_path, "train.warmup=4", "train.iterations=6", "student.optimizer.lr=4e-4"
    )
    rates = [result.lr for result in make_trainer(job).run(0)]
    assert [r[STUDENT] for r in rates] == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4, 4e-4, 4e-4])
    assert [r[FAKE_SCORE] for r in rates] == pytest.approx([2.5e-5, 5e-5, 7.5e-5, *[1e-4] * 3])


def test_both_networks_are_trained_and_the_teacher_is_not(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path))
    networks = trainer.strategy.networks
    before = {r: [p.detach().clone() for p in n.parameters()] for r, n in networks.items()}
    trainer.iterate(0)
    for role, network in networks.items():
        pairs = zip(before[role], network.parameters(), strict=True)
        changed = [not torch.equal(old, new) for old, new in pairs]
        assert all(changed) if role != TEACHER else not any(changed)


def test_both_gradients_are_taken_before_either_step(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, "train.accumulation=2"))
    calls: list[str] = []
    strategy: Any = trainer.strategy
    for name in ("backward", "step", "update_average"):
        original = getattr(strategy, name)

        def noted(*args: Any, name: str = name, original: Any = original) -> Any:
            calls.append(" ".join([name, *(a for a in args if isinstance(a, str))]))
            return original(*args)

        monkeypatch.setattr(strategy, name, noted)
    trainer.iterate(0)
    micro = ["backward fake_score", "backward student"]
    assert calls == [*micro, *micro, "step student", "step fake_score", "update_average"]


def test_the_average_is_the_student_until_it_begins(tiny_teacher: Path, tmp_path: Path) -> None:
    settings = ("train.ema=0.75", "train.ema_start=2")
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, *settings))
    strategy = trainer.strategy
    expected: dict[str, Tensor] = {}
    for iteration in range(4):
        trainer.iterate(iteration)
        for name, now in strategy.whole_tensors(STUDENT):
            late = iteration + 1 > 2
            expected[name] = 0.75 * expected[name] + 0.25 * now if late else now.clone()
        for name, averaged in strategy.whole_tensors(STUDENT, averaged=True):
            exact = iteration < 2
            tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-6}
            torch.testing.assert_close(averaged, expected[name], **tolerance)


def test_the_teacher_is_guided_in_one_batch(tiny_teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path))
    batch = trainer.batches.micro_batch(0, 0)
    x_t = batch.noise
    with torch.no_grad():
        cond, uncond = (
            trainer.strategy.velocity(TEACHER, x_t, batch.sigma, text)
            for text in (batch.text, batch.negative_text)
        )
    expected = x0_from_velocity(x_t, guide(cond, uncond, 8.0), batch.sigma)
    torch.testing.assert_close(
        teacher_x0(trainer.strategy, x_t, batch, 8.0), expected, rtol=1e-4, atol=1e-5
    )


def test_guidance_of_one_runs_no_unconditional_pass(tiny_teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, "teacher.guidance_scale=1"))
    counter = PassCounter(trainer.strategy.networks, samples=2)
    trainer.iterate(0)
    assert counter.take()["forwards"]["teacher"] == 1


class Breaking(SGMD):
    """Gives one sample of one term a NaN."""

    def generator_losses(self, sample: Any) -> dict[str, Tensor]:
        losses = super().generator_losses(sample)
        return {**losses, "nr": losses["nr"] * torch.tensor([1.0, float("nan")])}


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    sound = make_trainer(make_job(tiny_teacher, tmp_path))
    trainer = Trainer(replace(sound.job, method=Breaking()), sound.strategy, sound.batches)
    before = [p.detach().clone() for p in sound.strategy.networks[STUDENT].parameters()]
    prompt = sound.batches.micro_batch(3, 0).prompts[1]
    with pytest.raises(
        NotFiniteError, match=rf"step 4: the loss nr is not finite for the prompts \[{prompt}\]"
    ):
        trainer.iterate(3)
    after = sound.strategy.networks[STUDENT].parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_stopping_leaves_the_weights_of_the_iteration_before(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, "train.accumulation=3"))
    # For each micro-batch: after each step of its rollout, the teacher, and three backward passes.
    looks = 3 * (trainer.batches.exit_step(0) + 1 + 4)
    asked = iter([False] * (looks + 3) + [True])
    seen = []
    trainer.listen(StopOnRequest(trainer.strategy.ranks, lambda: next(asked)))
    for result in trainer.run(0):
        weights = trainer.strategy.networks[STUDENT].parameters()
        seen.append((result.step, [p.detach().clone() for p in weights]))
    assert [step for step, _ in seen] == [1]
    after = trainer.strategy.networks[STUDENT].parameters()
    assert all(torch.equal(old, new) for old, new in zip(seen[0][1], after, strict=True))
    assert next(asked, None) is None  # every look was taken


def test_the_other_roles_gradients_are_looked_at_before_any_step(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path))
    norm = trainer.strategy.gradient_norm
    seen = {}

    def broken(role: str) -> float:
        seen[role] = norm(role)
        return float("nan")

    monkeypatch.setattr(trainer.strategy, "gradient_norm", broken)
    networks = trainer.strategy.networks
    before = [p.detach().clone() for p in networks[STUDENT].parameters()]
    with pytest.raises(NotFiniteError, match="step 1: the gradient of fake_score is nan"):
        trainer.iterate(0)
    after = networks[STUDENT].parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    monkeypatch.undo()
    sound = make_trainer(make_job(tiny_teacher, tmp_path)).iterate(0)
    assert seen == {FAKE_SCORE: pytest.approx(sound.grad_norm[FAKE_SCORE])}


def test_learning_rate_rises_holds_and_falls() -> None:
    train = Train(iterations=10, warmup=4, decay=5)
    factors = [learning_rate_factor(iteration, train) for iteration in range(10)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    constant = Train(iterations=10, warmup=0)
    assert {learning_rate_factor(iteration, constant) for iteration in range(10)} == {1.0}
