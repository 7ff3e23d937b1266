"""ZeRO-3 in this process, as a run of one; several processes are in ``test_agreement``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import distill
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.parallel import (
    FAKE_SCORE,
    STUDENT,
    TEACHER,
    StrategySettings,
    connect,
    disconnect,
)
from lightx2v_sgmd.parallel.zero3.strategy import Zero3
from lightx2v_sgmd.parallel.zero3.two_forwards import TwoForwards
from lightx2v_sgmd.system.errors import UserError
from tests.parallel import isolation
from tests.parallel.ranks import run_ranks
from tests.training import make_job, make_trainer, needs_deepspeed, read_trace, weights_of

pytestmark = [needs_deepspeed, pytest.mark.slow]


@pytest.fixture(autouse=True)
def leave_the_process_group() -> Iterator[None]:
    yield
    disconnect("zero3")


def build(teacher: Path, folder: Path, *settings: str) -> Zero3:
    job = make_job(teacher, folder, "parallel.strategy=zero3", *settings)
    ranks = connect("zero3", torch.device("cpu"))
    return Zero3(open_wan(teacher), StrategySettings.of(job), ranks, fold_text=True)


def waiting(strategy: Any) -> bool:
    """True if DeepSpeed holds a gradient of the fake score, or memory for one, in any form."""
    optimizer = strategy._engines[FAKE_SCORE].optimizer
    return (
        isolation.has_gradients(strategy.networks[FAKE_SCORE])
        or any(bucket.params for bucket in optimizer.ipg_buckets.values())
        or bool(optimizer.averaged_gradients)
        or bool(optimizer.grad_partitions_flat_buffer.any())
    )


@pytest.mark.parametrize(("micro_batches", "train"), [(1, "full"), (2, "full"), (2, "lora")])
def test_generator_step_leaves_nothing_in_the_fake_score(
    tiny_teacher: Path, tmp_path: Path, micro_batches: int, train: str
) -> None:
    settings = (f"train.accumulation={micro_batches}", f"fake_score.train={train}")
    make = partial(build, tiny_teacher, tmp_path, *settings)
    assert isolation.what_is_left(make, waiting, micro_batches) == []


def test_isolation_check_sees_the_engine_in_place_of_the_module(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Zero3, "predict_inside", Zero3.predict)
    left = isolation.what_is_left(partial(build, tiny_teacher, tmp_path), waiting, 1)
    assert "a gradient is waiting" in left


def test_isolation_check_sees_a_leak(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The obvious way, a backward pass through the engine without freezing: no error, but wrong."""

    def leaking(self: Any, loss: Callable[..., Any], through: bool) -> tuple[Any, ...]:
        x0, x_t = self._x0.clone().requires_grad_(), self._x_t.clone().requires_grad_()
        velocity = self._zero3.predict(FAKE_SCORE, x_t, *self._at)
        loss(x0, x_t, velocity).backward()
        return x0.grad, x_t.grad

    monkeypatch.setattr(Zero3, "frozen", lambda self, *roles: contextlib.nullcontext())
    monkeypatch.setattr(TwoForwards, "generator_gradient", leaking)
    make = partial(build, tiny_teacher, tmp_path, "train.accumulation=2")
    left = isolation.what_is_left(make, waiting, 2)
    assert left[0] == "a gradient is waiting" and left[-1] == "the update differs"


def test_average_and_swapping_it_in(tiny_teacher: Path, tmp_path: Path) -> None:
    job = make_job(tiny_teacher, tmp_path, "parallel.strategy=zero3", "train.ema=0.75")
    trainer = make_trainer(job, connect("zero3", torch.device("cpu")), "zero3")
    strategy = trainer.strategy
    expected = {name: t.clone() for name, t in strategy.whole_tensors(STUDENT)}
    for iteration in range(2):
        trainer.iterate(iteration)
        for name, now in strategy.whole_tensors(STUDENT):
            expected[name] = 0.75 * expected[name] + 0.25 * now
    for name, averaged in strategy.whole_tensors(STUDENT, averaged=True):
        torch.testing.assert_close(averaged, expected[name], rtol=1e-5, atol=1e-6)

    batch = trainer.batches.micro_batch(0, 0)
    with torch.no_grad():
        run = partial(strategy.predict, STUDENT, batch.noise, batch.time, batch.conditioning)
        plain = run()
        with strategy.averaged_student():
            averaged_velocity = run()
        again = run()
    assert torch.equal(plain, again)
    assert not torch.equal(plain, averaged_velocity)
    strategy.close()


@pytest.mark.parametrize("offload", ["optimizer", "all"])
def test_offloading_changes_no_number(tiny_teacher: Path, tmp_path: Path, offload: str) -> None:
    results = []
    for where in ("none", offload):
        job = make_job(
            tiny_teacher, tmp_path, "parallel.strategy=zero3", f"parallel.offload={where}"
        )
        trainer = make_trainer(job, connect("zero3", torch.device("cpu")), "zero3")
        steps = [trainer.iterate(iteration) for iteration in range(2)]
        results.append((steps, dict(trainer.strategy.whole_tensors(STUDENT))))
        trainer.strategy.close()
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
    for name, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][name], rtol=0, atol=1e-6)


def test_bfloat16_keeps_float32_masters(tiny_teacher: Path, tmp_path: Path) -> None:
    job = make_job(tiny_teacher, tmp_path, "parallel.strategy=zero3", "teacher.dtype=bfloat16")
    trainer = make_trainer(job, connect("zero3", torch.device("cpu")), "zero3")
    strategy = trainer.strategy
    exact = open_wan(tiny_teacher).load_transformer().state_dict()
    assert all(torch.equal(t, exact[n]) for n, t in strategy.whole_tensors(STUDENT))
    rotary = dict(strategy.networks[STUDENT].named_buffers())
    assert all(not b.is_floating_point() or b.dtype != torch.bfloat16 for b in rotary.values())
    result = trainer.iterate(0)
    assert result.grad_norm[STUDENT] > 0
    strategy.close()


@pytest.mark.parametrize("offload", ["none", "all"])
def test_adapters_learn_beside_the_teachers_own_shards(
    tiny_teacher: Path, tmp_path: Path, offload: str
) -> None:
    """As ``local`` trains them; frozen weights are neither copied nor changed."""
    settings = ("student.train=lora", "fake_score.train=lora", "teacher.dtype=bfloat16")
    layout = ("parallel.strategy=zero3", f"parallel.offload={offload}")
    job = make_job(tiny_teacher, tmp_path, *settings, *layout)
    trainer = make_trainer(job, connect("zero3", torch.device("cpu")), "zero3")
    strategy: Any = trainer.strategy
    held = dict(strategy.networks[TEACHER].named_parameters())
    before = {name: p.ds_tensor.clone() for name, p in held.items()}
    local = make_trainer(make_job(tiny_teacher, tmp_path / "local", *settings)).strategy
    for role in (STUDENT, FAKE_SCORE):
        for name, p in strategy.networks[role].named_parameters():
            if not p.requires_grad:
                assert p.ds_tensor is held[name.replace(".base_layer", "")].ds_tensor, name
        masters = dict(local.whole_tensors(role))
        assert all(torch.equal(t, masters[n]) for n, t in strategy.whole_tensors(role))
    for iteration in range(2):
        assert trainer.iterate(iteration).grad_norm[STUDENT] > 0
    for name, p in held.items():
        assert torch.equal(p.ds_tensor, before[name]), name
    now = dict(strategy.whole_tensors(STUDENT))
    assert not any(torch.equal(now[n], t) for n, t in local.whole_tensors(STUDENT))
    strategy.close()


def compiler_is_imported(teacher: Path, folder: Path) -> bool:
    build(teacher, folder).close()
    return "torch._inductor.compile_fx" in sys.modules


def test_a_start_does_not_import_pytorchs_compiler(tiny_teacher: Path, tmp_path: Path) -> None:
    assert not run_ranks(1, compiler_is_imported, tiny_teacher, tmp_path)


def test_no_compiler_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler.*apt install g\+\+.*local"):
        connect("zero3", torch.device("cpu"))


@pytest.mark.parametrize("first_half", ["zero3", "local"])
def test_a_checkpoint_is_taken_up(tiny_teacher: Path, tmp_path: Path, first_half: str) -> None:
    """Bit for bit by the strategy that wrote it, within rounding by the other."""
    runs = {}
    for name, strategies in {"whole": ["zero3"], "halves": [first_half, "zero3"]}.items():
        for strategy, iterations in zip(strategies, [2, 4][-len(strategies) :], strict=True):
            job = make_job(
                tiny_teacher,
                tmp_path / name,
                f"parallel.strategy={strategy}",
                f"train.iterations={iterations}",
            )
            runs[name] = distill(job, quiet=True)
    traces = {name: read_trace(run) for name, run in runs.items()}
    weights = {name: weights_of(find_checkpoint(run)) for name, run in runs.items()}
    tolerance = 0.0 if first_half == "zero3" else 1e-5
    assert len(traces["halves"]) == 4
    for ours, theirs in zip(traces["halves"], traces["whole"], strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=tolerance, abs=0)
        assert ours["fisher"] == pytest.approx(theirs["fisher"], rel=tolerance, abs=0)
    for key, value in weights["whole"].items():
        torch.testing.assert_close(weights["halves"][key], value, rtol=0, atol=tolerance)
