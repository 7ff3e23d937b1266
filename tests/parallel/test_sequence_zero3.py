"""Sequence parallelism inside ZeRO-3 against one process, on real processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightx2v_sgmd.families.wan import open_wan
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, StrategySettings, sequence
from tests.parallel import isolation
from tests.parallel.ranks import run_ranks
from tests.parallel.test_sequence import Errors, distance, over_limits
from tests.training import make_job, needs_deepspeed


def sharded_update(
    teacher: Path, folder: Path, degree: int, checkpointing: str, accumulation: int
) -> dict[str, Errors]:
    """One update of student and fake score under ZeRO-3, each group on micro-batches of its own."""
    from lightx2v_sgmd.parallel import connect
    from lightx2v_sgmd.parallel.local import Local
    from lightx2v_sgmd.parallel.zero3.strategy import Zero3

    model, groups = open_wan(teacher), dist.get_world_size() // degree
    options = (
        "train.clip=0.01",
        f"parallel.gradient_checkpointing={checkpointing}",
        f"train.accumulation={accumulation}",
    )
    job = make_job(teacher, folder / str(dist.get_rank()), *options)
    settings = StrategySettings.of(job)
    count = groups * accumulation
    alone = Local(model, replace(settings, accumulation=count), torch.device("cpu"), True)
    expected = update(alone, range(count))
    ranks = connect("zero3", torch.device("cpu"))
    sharded = Zero3(model, settings, ranks, fold_text=True)
    group = sequence.open_sequence_group(degree)
    for network in sharded.networks.values():
        sequence.enable_sequence_parallel(network, group)
    mine = ranks.rank // degree
    ours = update(sharded, range(mine, count, groups))
    found = {
        "x0 and x_t": {
            "input gradient": max(
                distance(a, b)
                for a, b in zip(ours["inputs"][0], expected["inputs"][mine], strict=True)
            )
        }
    }
    for role, norm in ours["norms"].items():
        found[role] = {"gradient norm": abs(norm / expected["norms"][role] - 1)}
        pairs = ((ours["gradients"][role][n], g) for n, g in expected["gradients"][role].items())
        found[role]["gradient"] = max(distance(a, b) for a, b in pairs)
        # Adam's first step is as large for a small gradient as for a large one.
        moved = (ours["weights"][role][n] - w for n, w in expected["weights"][role].items())
        found[role]["update"] = max(float(difference.abs().max()) for difference in moved)
    sharded.close()
    return found


def update(strategy: Any, batches: Iterable[int]) -> dict[str, Any]:
    found: dict[str, Any] = {"inputs": [], "gradients": {}, "norms": {}, "weights": {}}
    for batch in batches:
        draw = torch.Generator().manual_seed(batch)
        noise, added = torch.randn(2, 1, 4, 2, 8, 8, generator=draw)
        sigma, text = torch.tensor([0.6]), torch.randn(1, 6, 16, generator=draw)
        x0 = noise - strategy.velocity(STUDENT, noise, torch.ones(1), text)
        x_t = 0.4 * x0 + 0.6 * added
        query = strategy.fake_score_at(x0, x_t, sigma, text)
        to_x0, to_x_t = query.generator_gradient(isolation.generator_loss, True)
        query.backward(isolation.fake_score_loss)
        strategy.backward(STUDENT, (x0 * to_x0).sum() + (x_t * to_x_t).sum())
        found["inputs"].append((to_x0, to_x_t))
    for role in (STUDENT, FAKE_SCORE):
        found["gradients"][role] = {
            name: gradient(p).clone() for name, p in strategy._named[role].items()
        }
        found["norms"][role] = strategy.step(role, 1e-3)
        found["weights"][role] = dict(strategy.whole_tensors(role))
    return found


def gradient(p: torch.nn.Parameter) -> torch.Tensor:
    """The whole one, wherever DeepSpeed keeps it."""
    if not hasattr(p, "ds_id"):
        assert p.grad is not None
        return p.grad
    from deepspeed.utils import safe_get_full_grad

    whole: torch.Tensor = safe_get_full_grad(p)
    return whole


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("degree", "checkpointing", "accumulation"),
    [(2, "true", 1), (4, "false", 2)],
)
def test_inside_zero3(
    tiny_teacher: Path, tmp_path: Path, degree: int, checkpointing: str, accumulation: int
) -> None:
    options = (degree, checkpointing, accumulation)
    found = run_ranks(4, sharded_update, tiny_teacher, tmp_path, *options, timeout_s=900)
    assert set(found) == {"x0 and x_t", STUDENT, FAKE_SCORE}
    assert over_limits(found) == {}
