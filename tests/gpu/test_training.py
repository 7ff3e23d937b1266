"""An iteration on a GPU is the iteration on the CPU, in one process and as one ZeRO-3 rank."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.updates import Iteration
from lightx2v_sgmd.parallel import Ranks, connect, disconnect
from tests.training import make_job, make_trainer

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact_float32")]
CUDA = torch.device("cuda")


def iterations(teacher: Path, folder: Path, ranks: Ranks, *settings: str) -> list[Iteration]:
    job = make_job(teacher, folder, *settings)
    trainer = make_trainer(job, ranks, job.parallel.strategy)
    found = [trainer.iterate(index) for index in range(3)]
    trainer.strategy.close()
    return found


def assert_same(found: list[Iteration], expected: list[Iteration], rel: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.exit_step == theirs.exit_step
        assert ours.losses == pytest.approx(theirs.losses, rel=rel)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=rel)


@pytest.mark.parametrize("checkpointing", ["false", "true", "selective"])
def test_one_process(tiny_teacher: Path, tmp_path: Path, checkpointing: str) -> None:
    settings = f"parallel.gradient_checkpointing={checkpointing}"
    expected = iterations(tiny_teacher, tmp_path / "cpu", Ranks(), settings)
    found = iterations(tiny_teacher, tmp_path / "gpu", Ranks(device=CUDA), settings)
    assert_same(found, expected, rel=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="no DeepSpeed")
def test_one_sharded_rank(tiny_teacher: Path, tmp_path: Path) -> None:
    expected = iterations(tiny_teacher, tmp_path / "cpu", Ranks())
    ranks = connect("zero3", CUDA)
    try:
        found = iterations(tiny_teacher, tmp_path / "gpu", ranks, "parallel.strategy=zero3")
    finally:
        disconnect("zero3")
    assert_same(found, expected, rel=1e-3)


def test_bfloat16_is_near(tiny_teacher: Path, tmp_path: Path) -> None:
    """In bfloat16 the GPU's losses are the CPU's to that precision."""
    settings = ("teacher.dtype=bfloat16",)
    expected = iterations(tiny_teacher, tmp_path / "cpu", Ranks(), *settings)[0]
    found = iterations(tiny_teacher, tmp_path / "gpu", Ranks(device=CUDA), *settings)[0]
    near: dict[str, Any] = {name: pytest.approx(v, rel=0.1) for name, v in expected.losses.items()}
    assert found.losses == near
