"""The formulas against counted operations and counted passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.counting import COUNTS, PassCounter
from distill.data import Batches
from distill.observed import StopOnRequest
from distill.planning.flops import (
    Operations,
    forward_operations,
    iteration_passes,
    stop_intervals,
)
from distill.planning.model_meter import ModelMeter
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from tests.training import make_job, make_trainer


def test_operations_are_those_that_torch_counts() -> None:
    model = open_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    model = replace(model, transformer_config=model.transformer_config | {"num_layers": 2})
    with torch.device("meta"):
        network = model.build_transformer()
        x_t, sigma = torch.empty(1, 16, 3, 12, 20), torch.empty(1)
        text = torch.empty(1, 512, model.text_dim)
    forward = forward_operations(model.transformer_config, 3 * 6 * 10, 512)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        velocity(network, x_t, sigma, text)
    assert counter.get_total_flops() == forward.linear + forward.attention
    with FlopCounterMode(display=False) as counter:
        output = velocity(network, x_t.requires_grad_(), sigma, text)
        output.backward(torch.empty_like(output))
    # All but the gradients at the text and the time, which nobody asks for.
    inputs = 2 * (512 * 4096 + 256) * 1536
    assert counter.get_total_flops() == 3 * (forward.linear + forward.attention) - inputs


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        ("method.name=sgmd",),
        ("method.name=dmd2", "method.fake_score_updates=2"),
        ("method.name=sid",),
        ("method.name=tsg_sim", "teacher.guidance_scale=1"),
        ("method.name=sgmd", "fake_score={train: lora, lora: {rank: 4}}"),
    ],
)
def test_passes_are_those_that_a_run_counts(
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
    checkpointing: bool,
) -> None:
    monkeypatch.setattr(
        Batches, "exit_step", lambda self, batch_index: batch_index % 4
    )  # each as often
    again = f"parallel.gradient_checkpointing={str(checkpointing).lower()}"
    job = make_job(tiny_teacher, tmp_path, *settings, again)
    trainer = make_trainer(job)
    counter = PassCounter(trainer.strategy.networks, job.train.micro_batch)
    for iteration in range(4):
        trainer.iterate(iteration)
    shares = ModelMeter(open_wan(job.teacher.path)).shares(job)
    counted, planned = counter.take(), iteration_passes(job, shares)
    for role, passes in planned.items():
        for count in COUNTS:
            expected = pytest.approx(counted[count][role] / 4, rel=1e-12)
            assert getattr(passes, count) == expected, (role, count)


@pytest.mark.parametrize(
    "settings",
    [
        ("method.name=sgmd", "parallel.gradient_checkpointing=true"),
        ("method.name=dmd2", "method.fake_score_updates=2"),
        ("method.name=sid", "parallel.strategy=zero3"),
    ],
)
def test_a_stop_is_looked_for_between_all_stretches(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    """All together they are the iteration, and a run does one of them between two looks."""
    monkeypatch.setattr(Batches, "exit_step", lambda self, batch_index: batch_index % 4)
    job = make_job(tiny_teacher, tmp_path, *settings, "train.micro_batch=1")
    planned = stop_intervals(job)
    work = Operations(3, 5)
    expected = sum(times * passes.operations(work) for times, passes in planned.values())
    found = sum(passes.operations(work) for passes in iteration_passes(job).values())
    assert found == pytest.approx(expected)
    if job.parallel.strategy != "local":
        return  # more ranks look at the same places
    trainer = make_trainer(job)
    counter, seen = PassCounter(trainer.strategy.networks, 1), []

    def asked() -> bool:
        seen.append(counter.take()["forward_equivalents"])
        return False

    trainer.listen(StopOnRequest(trainer.strategy.ranks, asked))
    iterations = 4
    for iteration in range(iterations):
        trainer.iterate(iteration)
    seen.append(counter.take()["forward_equivalents"])  # the last one's
    sizes = {sum(getattr(p, count) for count in COUNTS) for _, p in planned.values()}
    assert {round(size, 9) for size in seen if size} == {round(size, 9) for size in sizes}
    total = iterations * sum(
        times * sum(getattr(p, count) for count in COUNTS) for times, p in planned.values()
    )
    assert sum(seen) == pytest.approx(total)
