from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.networks.adapters import trained_parameters
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, TEACHER, StrategySettings, connect
from lightx2v_sgmd.parallel import local as local_module
from lightx2v_sgmd.parallel.local import Local
from tests.parallel import isolation
from tests.training import make_job, make_trainer


def build(teacher: Path, folder: Path, *settings: str) -> Local:
    job = make_job(teacher, folder, *settings)
    return Local(open_wan(teacher), StrategySettings.of(job), torch.device("cpu"), fold_text=True)


def query_inputs() -> tuple[Tensor, Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    x0, x_t = torch.randn(2, 2, 4, 2, 8, 8, generator=generator)
    told = Conditioning({"text": torch.randn(2, 5, 16, generator=generator)})
    return x0, x_t, torch.tensor([0.2, 0.7]), told


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_shared_forward_gives_the_gradients_of_two(
    tiny_teacher: Path, tmp_path: Path, checkpointing: str, train: str
) -> None:
    local = build(
        tiny_teacher,
        tmp_path,
        f"parallel.gradient_checkpointing={checkpointing}",
        f"fake_score.train={train}",
    )
    x0, x_t, sigma, text = query_inputs()
    query = local.fake_score_at(x0, x_t, sigma, text)
    shared = query.generator_gradient(isolation.generator_loss, through=True)
    query.backward(isolation.fake_score_loss)
    weights = [p for p in local.networks[FAKE_SCORE].parameters() if p.requires_grad]
    shared_weights = [p.grad for p in weights]
    others = [p for net in local.networks.values() for p in net.parameters()]
    assert sum(p.grad is not None for p in others) == len(weights)

    leaf_0, leaf_t = x0.clone().requires_grad_(), x_t.clone().requires_grad_()
    value = isolation.generator_loss(leaf_0, leaf_t, local.predict(FAKE_SCORE, leaf_t, sigma, text))
    apart = torch.autograd.grad(value, [leaf_0, leaf_t])
    value = isolation.fake_score_loss(x0, x_t, local.predict(FAKE_SCORE, x_t, sigma, text))
    apart_weights = torch.autograd.grad(value, weights)
    for ours, theirs in zip([*shared, *shared_weights], [*apart, *apart_weights], strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("micro_batches", "train"), [(1, "full"), (2, "full"), (2, "lora")])
def test_generator_step_leaves_nothing_in_the_fake_score(
    tiny_teacher: Path, tmp_path: Path, micro_batches: int, train: str
) -> None:
    settings = (f"train.accumulation={micro_batches}", f"fake_score.train={train}")
    make = partial(build, tiny_teacher, tmp_path, *settings)
    left = isolation.what_is_left(
        make, lambda s: isolation.has_gradients(s.networks[FAKE_SCORE]), micro_batches
    )
    assert left == []


def test_isolation_check_sees_a_leak(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(
        self: local_module._SharedForward, loss: Callable[..., Any], through: bool
    ) -> tuple[Any, ...]:
        self._predicted = self._run(x_t=self._x_t)
        loss(self._x0, self._x_t, self._predicted).backward(retain_graph=True)
        return self._x0.grad, self._x_t.grad

    monkeypatch.setattr(local_module._SharedForward, "generator_gradient", leaking)
    left = isolation.what_is_left(
        partial(build, tiny_teacher, tmp_path),
        lambda s: isolation.has_gradients(s.networks[FAKE_SCORE]),
        1,
    )
    assert left[0] == "a gradient is waiting" and left[-1] == "the update differs"


@pytest.mark.parametrize("train", ["full", "lora"])
def test_average_is_the_formula(tiny_teacher: Path, tmp_path: Path, train: str) -> None:
    local = build(tiny_teacher, tmp_path, "train.ema=0.75", f"student.train={train}")
    expected = {name: t.clone() for name, t in local.whole_tensors(STUDENT)}
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        with torch.no_grad():
            for p in trained_parameters(local.networks[STUDENT]).values():
                p += torch.randn(p.shape, generator=generator)  # type: ignore[misc]
        local.update_average(0.75)
        for name, now in local.whole_tensors(STUDENT):
            expected[name] = 0.75 * expected[name] + 0.25 * now
    for name, averaged in local.whole_tensors(STUDENT, averaged=True):
        torch.testing.assert_close(averaged, expected[name], rtol=1e-5, atol=1e-6)
    before = {name: t.clone() for name, t in local.whole_tensors(STUDENT)}
    with local.averaged_student():
        inside = trained_parameters(local.networks[STUDENT])
        assert all(torch.allclose(inside[name], expected[name], atol=1e-6) for name in expected)
    assert all(torch.equal(now, before[name]) for name, now in local.whole_tensors(STUDENT))


def test_the_optimizers_are_fused(tiny_teacher: Path, tmp_path: Path) -> None:
    """One kernel without temporaries; the memory plan counts none."""
    local = build(tiny_teacher, tmp_path)
    assert {role: each.defaults["fused"] for role, each in local._optimizers.items()} == {
        STUDENT: True,
        FAKE_SCORE: True,
    }


def test_clipping_is_deepspeeds_formula(tiny_teacher: Path, tmp_path: Path) -> None:
    local = build(
        tiny_teacher,
        tmp_path,
        "train.clip=0.5",
        "student.optimizer.betas=[0.0, 0.0]",
        "student.optimizer.eps=1000.0",  # makes a step g / 1000: linear in the gradient
    )
    weights = list(local.networks[STUDENT].parameters())
    before = [p.detach().clone() for p in weights]
    for p in weights:
        p.grad = torch.ones_like(p)
    n = sum(p.numel() for p in weights)
    norm = local.step(STUDENT, lr=1.0)
    assert norm == pytest.approx(n**0.5, rel=1e-6)
    clipped = 1 / ((n**0.5 + 1e-6) / 0.5)
    for p, old in zip(weights, before, strict=True):
        torch.testing.assert_close(old - p, torch.full_like(p, clipped / 1000), rtol=0.05, atol=0)
        assert p.grad is None


def test_a_gradient_that_is_not_finite_changes_nothing(tiny_teacher: Path, tmp_path: Path) -> None:
    local = build(tiny_teacher, tmp_path)
    weights = list(local.networks[STUDENT].parameters())
    before = [p.detach().clone() for p in weights]
    for p in weights:
        p.grad = torch.full_like(p, float("inf"))
    assert local.step(STUDENT, 1e-3) == float("inf")
    assert all(torch.equal(p, old) for p, old in zip(weights, before, strict=True))


def test_bfloat16_keeps_float32_masters(tiny_teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, "teacher.dtype=bfloat16"))
    result = trainer.iterate(0)
    assert {p.dtype for p in trainer.strategy.networks[STUDENT].parameters()} == {torch.float32}
    assert result.grad_norm[STUDENT] > 0
    exact = make_trainer(make_job(tiny_teacher, tmp_path)).iterate(0)
    assert result.losses["rc"] == pytest.approx(exact.losses["rc"], rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_learn_beside_the_teachers_own_weights(
    tiny_teacher: Path, tmp_path: Path, dtype: str
) -> None:
    """One copy of the frozen weights for all three networks, untouched by training."""
    settings = (f"teacher.dtype={dtype}", "student.train=lora", "fake_score.train=lora")
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, *settings))
    networks = trainer.strategy.networks
    held = {name: p.data_ptr() for name, p in networks[TEACHER].named_parameters()}
    before = {name: p.clone() for name, p in networks[TEACHER].named_parameters()}
    for role in (STUDENT, FAKE_SCORE):
        named = dict(networks[role].named_parameters())
        frozen = {n.replace(".base_layer", ""): p for n, p in named.items() if not p.requires_grad}
        assert {name: p.data_ptr() for name, p in frozen.items()} == held
        trained = {p.dtype for p in named.values() if p.requires_grad}
        assert trained == {torch.float32}
    starts = {role: dict(trainer.strategy.whole_tensors(role)) for role in (STUDENT, FAKE_SCORE)}
    starts = {r: {n: t.clone() for n, t in values.items()} for r, values in starts.items()}
    for iteration in range(2):  # the first moves one factor, for the other one starts as zero
        result = trainer.iterate(iteration)
        assert result.grad_norm[STUDENT] > 0 and result.grad_norm[FAKE_SCORE] > 0
    for name, p in networks[TEACHER].named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None, name
    for role, values in starts.items():
        now = dict(trainer.strategy.whole_tensors(role))
        assert not any(torch.equal(now[name], start) for name, start in values.items()), role


@pytest.mark.parametrize("adapted", [STUDENT, FAKE_SCORE])
def test_one_role_by_adapters_the_other_in_full(
    tiny_teacher: Path, tmp_path: Path, adapted: str
) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, f"{adapted}.train=lora"))
    plain = make_trainer(make_job(tiny_teacher, tmp_path / "plain"))
    ours, theirs = trainer.iterate(0), plain.iterate(0)
    # All start as the teacher, so the first losses are the same; the gradients are not.
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-6)
    other = FAKE_SCORE if adapted == STUDENT else STUDENT
    assert ours.grad_norm[other] == pytest.approx(theirs.grad_norm[other], rel=1e-5)
    assert ours.grad_norm[adapted] != pytest.approx(theirs.grad_norm[adapted], rel=0.01)


def test_local_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightx2v_sgmd.system.errors import UserError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="local is one process, not 2"):
        connect("local", torch.device("cpu"))
