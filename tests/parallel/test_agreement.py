"""One process, one ZeRO-3 rank and two ZeRO-3 ranks train the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightx2v_sgmd.files.checkpoint import find_checkpoint
from tests.tiny import make_tiny_experts
from tests.training import make_job, needs_deepspeed, read_trace, train, weights_of

pytestmark = [needs_deepspeed, pytest.mark.slow]

LAYOUTS = {  # processes, strategy, micro batch, ranks on one video: the same global batch
    "local": (1, "local", 2, 1),
    "one rank": (1, "zero3", 2, 1),
    "two ranks": (2, "zero3", 1, 1),
    "two ranks on one video": (2, "zero3", 2, 2),
}


@pytest.mark.parametrize(("accumulation", "clip"), [(1, 0.5), (2, 100.0)])
def test_strategies_agree(
    tiny_teacher: Path, tmp_path: Path, accumulation: int, clip: float
) -> None:
    traces, weights = {}, {}
    for layout, (nproc, strategy, micro_batch, sequence) in LAYOUTS.items():
        job = make_job(
            tiny_teacher,
            tmp_path / layout.replace(" ", "_"),
            f"train.accumulation={accumulation}",
            f"train.clip={clip}",
            f"train.micro_batch={micro_batch}",
            f"parallel.strategy={strategy}",
            f"parallel.sequence={sequence}",
        )
        run = train(job, nproc)
        traces[layout], weights[layout] = read_trace(run), weights_of(find_checkpoint(run))
    reference = traces["local"]
    assert len(reference) == 5
    norms = [norm for row in reference for norm in row["grad_norm"].values()]
    assert (max(norms) > clip) == (clip == 0.5), "one case is to clip, the other is not"
    for layout in [*LAYOUTS][1:]:
        for ours, theirs in zip(traces[layout], reference, strict=True):
            assert _flat(ours) == pytest.approx(_flat(theirs), rel=1e-5), layout
        assert weights[layout].keys() == weights["local"].keys()
        for name, value in weights[layout].items():
            difference = float((value - weights["local"][name]).abs().max())
            assert difference <= 1e-5, (layout, name)
    moved = [
        float((weights["local"][f"student/{n}"] - w.flatten()).abs().max())
        for n, w in _start(tiny_teacher)
    ]
    assert min(moved) > 1e-5, "every weight moved further than the tolerance"


@pytest.mark.parametrize("adapters", [False, True])
def test_strategies_agree_on_two_experts(tmp_path: Path, adapters: bool) -> None:
    """Each iteration trains one of them, so an engine often has no gradient."""
    teacher = make_tiny_experts(tmp_path / "teacher")
    lora = ("student.train=lora", "student.lora.rank=2", "fake_score.train=lora")
    weights, steps = {}, set()
    for layout in ("local", "two ranks"):
        nproc, strategy, micro_batch, _ = LAYOUTS[layout]
        folder = tmp_path / layout.replace(" ", "_")
        settings = (f"train.micro_batch={micro_batch}", f"parallel.strategy={strategy}")
        job = make_job(teacher, folder, *settings, *(lora if adapters else ()))
        run = train(job, nproc)
        weights[layout] = weights_of(find_checkpoint(run))
        steps |= {row["exit_step"] >= 2 for row in read_trace(run)}
    assert steps == {True, False}, "both experts are trained"
    names = weights["local"].keys()
    assert {name.partition("/")[0] for name in names} == {
        *("student", "student_2", "student_ema", "student_2_ema", "fake_score", "fake_score_2")
    }
    assert weights["two ranks"].keys() == names
    for name, value in weights["local"].items():
        difference = (value - weights["two ranks"][name]).abs().flatten()
        # Adam without momentum makes a step of up to its rate, 1e-4, from a gradient that is
        # rounding alone, as single values of adapters have.
        assert float(difference.quantile(0.99)) <= 1e-6 and float(difference.max()) <= 1e-4, name


def _flat(row: dict[str, Any]) -> dict[str, float]:
    norms = {f"grad_norm/{role}": norm for role, norm in row["grad_norm"].items()}
    rates = {f"lr/{role}": lr for role, lr in row["lr"].items()}
    return {k: v for k, v in row.items() if not isinstance(v, dict)} | norms | rates


def _start(teacher: Path) -> list[tuple[str, torch.Tensor]]:
    from lightx2v_sgmd.families.wan.opening import open_wan

    return list(open_wan(teacher).load_transformer().state_dict().items())
