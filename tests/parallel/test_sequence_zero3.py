"""Sequence parallelism inside ZeRO-3 against one process, on real processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from distill.counting import PassCounter
from distill.trainer import Trainer
from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.latents import LatentFolder
from lightx2v_sgmd.methods import ADM, ADP, DMD2, DMDX, SiD
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, TEACHER, StrategySettings, sequence
from tests.distill.test_adversarial_gradients import HEADS, LATE, trainer_for, write_latents
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
        generator = torch.Generator().manual_seed(batch)
        noise, added = torch.randn(2, 1, 4, 2, 8, 8, generator=generator)
        sigma = torch.tensor([0.6])
        told = Conditioning({"text": torch.randn(1, 6, 16, generator=generator)})
        x0 = noise - strategy.predict(STUDENT, noise, torch.ones(1), told)
        x_t = 0.4 * x0 + 0.6 * added
        query = strategy.fake_score_at(x0, x_t, sigma, told)
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


THROUGH_THE_TEACHER: list[Any] = [
    SiD(),
    DMD2(fake_score_updates=1, gan_weight=0.7, discriminator=HEADS),
    # A small delta would leave the heads a gradient that is mostly rounding.
    DMDX(adp=ADP(pixel_weight=0), adm=ADM(delta=0.25), pretraining=1, discriminator=HEADS),
]
"""DMDX's first iteration is ADP's here, and its second is ADM's."""


def gradients_of_a_run(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The gradients of an iteration of each stage; the weights stay as they are in between."""
    strategy: Any = trainer.strategy
    counter = PassCounter(strategy.networks, trainer.job.train.micro_batch)
    found = {}
    for iteration in range(len(trainer.job.method.stages)):
        trained: list[str] = []
        for _, add_gradients in trainer.updates(iteration):
            trained += add_gradients(0)
        assert len(trained) == len(set(trained))
        for role in trained:
            for name, p in strategy._named[role].items():
                found[f"{iteration} {role} {name}"] = gradient(p).clone()
            strategy.step(role, 0.0)
    again = counter.take()["recomputed"][TEACHER] > 0
    assert again == bool(trainer.job.parallel.gradient_checkpointing)
    return found


def recomputed(teacher: Path, latents: LatentFolder, folder: Path) -> dict[str, float]:
    """How far each gradient on two ranks that share a video is from that in one process.

    The ranks compute activations again in the backward pass, and the process keeps them.
    """
    from lightx2v_sgmd.parallel import connect

    ranks = replace(connect("zero3", torch.device("cpu")), share=2)
    layout = ("parallel.strategy=zero3", "parallel.sequence=2")
    found: dict[str, float] = {}
    for method in THROUGH_THE_TEACHER:
        options = (method, teacher, folder / method.name / str(ranks.rank), latents, LATE)
        plain = trainer_for(*options, "parallel.gradient_checkpointing=false")
        expected = gradients_of_a_run(plain)
        again = "parallel.gradient_checkpointing=true"
        ours = gradients_of_a_run(trainer_for(*options, *layout, again, ranks=ranks))
        assert ours.keys() == expected.keys()
        found |= {f"{method.name} {name}": distance(ours[name], g) for name, g in expected.items()}
    return found


@needs_deepspeed
@pytest.mark.slow
def test_recomputing_the_teacher_on_two_ranks_changes_no_gradient(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    """No role's gradient changes, in methods whose generator's runs through the teacher."""
    found = run_ranks(2, recomputed, tiny_teacher, write_latents(tmp_path / "latents"), tmp_path)
    for method, iterations in (("sid", 1), ("dmd2", 1), ("dmdx", 2)):
        for iteration in range(iterations):
            assert any(name.startswith(f"{method} {iteration} student") for name in found)
    assert any(name.startswith("dmd2 0 discriminator") for name in found)
    assert {name: error for name, error in found.items() if error > 2e-4} == {}
