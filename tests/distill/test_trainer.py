from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.counting import PassCounter
from distill.loss_terms import NotFiniteError, UpdateIndex
from distill.observed import Event, Listener, StopOnRequest
from distill.trainer import Trainer
from distill.updates import learning_rate_factor
from lightx2v_sgmd.job.schema import Train
from lightx2v_sgmd.methods import SGMD
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, TEACHER
from tests.training import make_job, make_trainer


@pytest.mark.parametrize(("per", "student"), [("update", [1, 1, 1]), ("micro_batch", [1, 2, 3])])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_what_shares_an_exit_step(
    per: str,
    student: list[int],
    own: bool,
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each micro-batch runs the student up to the exit step of its own index."""
    settings = (f"train.exit_step_per={per}", "train.accumulation=3")
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, *settings))
    monkeypatch.setattr(trainer.batches, "exit_step", lambda exit_index: exit_index)
    counter = PassCounter(trainer.strategy.networks, 2)
    add = trainer.add_fake_score_gradients if own else trainer.add_gradients
    for micro, passes in enumerate(student):
        add(micro, 0, 0)
        assert counter.take()["forwards"]["student"] == passes
    assert trainer.iterate(0).exit_step == 0  # that of the first micro-batch


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
    assert calls == [*micro, *micro, "step student", "step fake_score", "update_average student"]


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


class Breaking(SGMD):
    """Gives one sample of one term a NaN."""

    def generator_losses(self, sample: Any) -> dict[str, Tensor]:
        losses = super().generator_losses(sample)
        return {**losses, "nr": losses["nr"] * torch.tensor([1.0, float("nan")])}


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    healthy = make_trainer(make_job(tiny_teacher, tmp_path))
    trainer = Trainer(replace(healthy.job, method=Breaking()), healthy.strategy, healthy.batches)
    before = [p.detach().clone() for p in healthy.strategy.networks[STUDENT].parameters()]
    prompt = healthy.batches.micro_batch(3, 0).prompts[1]
    with pytest.raises(
        NotFiniteError, match=rf"step 4: the loss nr is not finite for the prompts \[{prompt}\]"
    ):
        trainer.iterate(3)
    after = healthy.strategy.networks[STUDENT].parameters()
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
    healthy = make_trainer(make_job(tiny_teacher, tmp_path)).iterate(0)
    assert seen == {FAKE_SCORE: pytest.approx(healthy.grad_norm[FAKE_SCORE])}


def test_learning_rate_rises_holds_and_falls() -> None:
    train = Train(iterations=10, warmup=4, decay=5)
    factors = [learning_rate_factor(iteration, train) for iteration in range(10)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    constant = Train(iterations=10, warmup=0)
    assert {learning_rate_factor(iteration, constant) for iteration in range(10)} == {1.0}


class Places(Listener):
    """Remembers where the run says that it is, before each backward pass and step."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.seen = trainer, [trainer.where()]

    def before(self, event: Event) -> None:
        if event.action in ("backward", "step"):
            self.seen.append(f"{event.action} {event.role}: {self.trainer.where()}")


def test_a_run_says_where_it_is(tiny_teacher: Path, tmp_path: Path) -> None:
    settings = ("train.accumulation=2", "method={name: dmd2, fake_score_updates: 1}")
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, *settings))
    places = Places(trainer)
    trainer.listen(places)
    trainer.iterate(4)
    first, second = "step 5, update 1 of 2", "step 5, update 2 of 2"
    assert places.seen == [
        "starting",
        f"backward student: {first}, micro-batch 1 of 2",
        f"backward student: {first}, micro-batch 2 of 2",
        f"step student: {first}",
        f"backward fake_score: {second}, micro-batch 1 of 2",
        f"backward fake_score: {second}, micro-batch 2 of 2",
        f"step fake_score: {second}",
    ]


def test_what_an_iteration_records(tiny_teacher: Path, tmp_path: Path) -> None:
    settings = ("train.warmup=0", "method={name: dmd2, fake_score_updates: 2}")
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, *settings))
    result = trainer.iterate(2)
    assert result.step == 3 and result.done == 3
    assert result.exit_step == trainer.batches.exit_step(6)  # the student's batch of iteration 2
    assert result.stepped == {STUDENT: 1, FAKE_SCORE: 2}
    assert result.updates == {"dmd": 1, "fake": 2}
    assert result.lr == {STUDENT: pytest.approx(1e-4), FAKE_SCORE: pytest.approx(1e-4)}
    assert trainer.partial_iteration is None


def test_a_stopped_iteration_goes_on_with_its_next_update(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    """Earlier records stay, and the updates that were done are not done again."""
    settings = ("train.warmup=0", "method={name: dmd2, fake_score_updates: 2}")
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, *settings))
    strategy = trainer.strategy
    steps: list[str] = []

    class Noted(Listener):
        def before(self, event: Event) -> None:
            if event.action == "step":
                steps.append(event.role)

    trainer.listen(Noted(), StopOnRequest(strategy.ranks, lambda: len(steps) == 2))
    assert list(trainer.run(0)) == []
    left = trainer.partial_iteration
    assert left is not None and left.done == 2 and left.stepped == {STUDENT: 1, FAKE_SCORE: 1}
    assert steps == [STUDENT, FAKE_SCORE] and left.updates == {"dmd": 1, "fake": 1}
    again = Trainer(trainer.job, strategy, trainer.batches)
    result = next(again.run(0, left))
    assert result is left and result.done == 3 and result.step == 1
    assert result.stepped == {STUDENT: 1, FAKE_SCORE: 2} and result.updates["fake"] == 2


def test_an_update_can_be_tried_without_changing_weights(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, "train.accumulation=2"))
    networks = trainer.strategy.networks
    before = [p.detach().clone() for p in networks[STUDENT].parameters()]
    index = UpdateIndex(iteration=1, update=0, batch_index=1)
    drawn: list[tuple[int, int]] = []
    original = trainer.batches.micro_batch

    def noted(batch_index: int, micro: int) -> Any:
        drawn.append((batch_index, micro))
        return original(batch_index, micro)

    monkeypatch.setattr(trainer.batches, "micro_batch", noted)
    trainer.try_update(index, [1, 0])
    assert drawn == [(1, 1), (1, 0)]
    after = networks[STUDENT].parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    monkeypatch.setattr(trainer.strategy, "gradient_norm", lambda role: float("inf"))
    with pytest.raises(NotFiniteError, match="step 2: the gradient of student is inf"):
        trainer.try_update(index, [0])
    broken = Trainer(replace(trainer.job, method=Breaking()), trainer.strategy, trainer.batches)
    with pytest.raises(NotFiniteError, match="step 2: the loss nr is not finite"):
        broken.try_update(index, [0])


def test_a_step_that_finds_no_finite_gradient_stops_the_run(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path))
    monkeypatch.setattr(trainer.strategy, "step", lambda role, lr: float("nan"))
    with pytest.raises(NotFiniteError, match="step 1: the gradient of student is nan"):
        trainer.iterate(0)
