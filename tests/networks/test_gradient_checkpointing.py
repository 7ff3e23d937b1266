"""Gradient checkpointing, whole and selective: the same numbers, less memory, counted work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from distill.counting import COUNTS, PassCounter
from distill.data import Batches
from distill.planning.flops import forward_operations, iteration_passes
from distill.planning.metering import Pass, fused_attention, meter_pass
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.methods import ADM, DMD2, SiD
from lightx2v_sgmd.methods.base import Discriminator
from lightx2v_sgmd.networks.discriminator_heads import capture_blocks
from lightx2v_sgmd.networks.gradient_checkpointing import Checkpointing, enable_checkpointing
from lightx2v_sgmd.parallel import TEACHER
from lightx2v_sgmd.system.errors import UserError
from tests.distill.planning.test_rank_memory import SMALL_WAN
from tests.distill.test_methods import trainer_for
from tests.parallel.ranks import run_ranks
from tests.profiling import peak_growth
from tests.training import job_file, make_job, make_trainer, needs_deepspeed

KINDS: list[Checkpointing] = [False, "selective", True]


def setting(kind: Checkpointing) -> str:
    return f"parallel.gradient_checkpointing={str(kind).lower()}"


def test_the_same_numbers(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batches, "exit_step", lambda self, batch_index: batch_index % 4)
    results: list[Any] = []
    for kind in KINDS:
        job = make_job(tiny_teacher, tmp_path, setting(kind))
        trainer = make_trainer(job)
        counter = PassCounter(trainer.strategy.networks, job.train.micro_batch)
        results.append([trainer.iterate(iteration) for iteration in range(4)])
        counted, planned = counter.take(), iteration_passes(job)
        for role, passes in planned.items():
            for count in COUNTS:
                assert getattr(passes, count) == counted[count][role] / 4, (kind, role, count)
    assert results[0] == results[1] == results[2]


HEADS = Discriminator(head_every=1, head_channels=32)
THROUGH_THE_TEACHER: list[Any] = [
    SiD(),
    ADM(guidance_range=(5.0, 7.0), discriminator=HEADS),
    DMD2(fake_score_updates=1, gan_weight=0.1, discriminator=HEADS),
]


@pytest.mark.parametrize("method", THROUGH_THE_TEACHER, ids=lambda method: method.name)
def test_the_teacher_is_computed_again_where_gradient_runs_through_it(
    method: Any, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are those without checkpointing, and the plan counts what a run counts."""
    monkeypatch.setattr(Batches, "exit_step", lambda self, batch_index: batch_index % 4)
    gradients: list[Any] = []
    for kind in KINDS:
        trainer = trainer_for(method, tiny_teacher, tmp_path, setting(kind))
        counter = PassCounter(trainer.strategy.networks, trainer.job.train.micro_batch)
        for batch_index in range(4):
            trainer.add_gradients(0, batch_index, 0)
            trainer.add_fake_score_gradients(0, batch_index, 0)
        counted = counter.take()
        assert (counted["recomputed"][TEACHER] > 0) == (kind is not False)
        planned = iteration_passes(trainer.job)
        if method.fresh_rollouts:  # SiD's fake score shares the student's rollout
            for role, passes in planned.items():
                for count in COUNTS:
                    expected = pytest.approx(counted[count][role] / 4)
                    assert getattr(passes, count) == expected, (kind, role, count)
        networks = trainer.strategy.networks
        gradients.append({r: [p.grad for p in networks[r].parameters()] for r in method.roles})
    plain, *others = gradients
    for again in others:
        for role, found in again.items():
            for ours, theirs in zip(found, plain[role], strict=True):
                assert torch.equal(ours, theirs), role


def test_heads_see_each_block_once_though_blocks_run_again(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    """A backward pass inside the capture runs the blocks again, and adds nothing to it."""
    network = open_wan(tiny_teacher).load_transformer()
    enable_checkpointing(network, True)
    x_t = torch.randn(1, 4, 2, 8, 8, requires_grad=True)
    with capture_blocks(network.blocks, 1, lambda x: x) as outputs:
        found = velocity(network, x_t, torch.full((1,), 0.5), torch.randn(1, 4, 16))
        assert len(outputs) == len(network.blocks)
    with (
        capture_blocks(network.blocks, 1, lambda x: x) as outputs,
        set_checkpoint_early_stop(False),
    ):
        found = velocity(network, x_t, torch.full((1,), 0.5), torch.randn(1, 4, 16))
        found.sum().backward()
        assert len(outputs) == len(network.blocks)


def cost_under_zero3(teacher: Path, folder: Path) -> list[Any]:
    """Results and counts of four iterations, with checkpointing, whole and selective."""
    import torch.distributed as dist

    from lightx2v_sgmd.parallel import connect

    ranks = connect("zero3", torch.device("cpu"))
    found = []
    for kind in (True, "selective"):
        own = folder / str(dist.get_rank())
        job = make_job(teacher, own, "parallel.strategy=zero3", setting(kind))
        trainer = make_trainer(job, ranks, "zero3")
        trainer.batches.exit_step = lambda exit_index: exit_index % 4  # type: ignore[method-assign]
        counter = PassCounter(trainer.strategy.networks, job.train.micro_batch)
        done = [trainer.iterate(iteration) for iteration in range(4)]
        results = [(each.losses, each.grad_norm) for each in done]
        counts = counter.take()
        planned = {role: vars(passes) for role, passes in iteration_passes(job).items()}
        found.append((results, counts, planned))
    trainer.strategy.close()
    return found


@needs_deepspeed
@pytest.mark.slow
def test_what_sgmd_costs_under_zero3(tiny_teacher: Path, tmp_path: Path) -> None:
    whole, selective = run_ranks(2, cost_under_zero3, tiny_teacher, tmp_path)
    assert whole[0] == selective[0]
    for _, counts, planned in (whole, selective):
        assert counts["forward_equivalents"] / 4 == 14.5  # over the exit steps; 13.5 in one process
        for role, passes in planned.items():
            assert {count: counts[count][role] / 4 for count in COUNTS} == {
                count: passes[count] for count in COUNTS
            }


def test_what_sgmd_costs_in_one_process(tiny_teacher: Path, tmp_path: Path) -> None:
    planned = iteration_passes(make_job(tiny_teacher, tmp_path, setting(True)))
    sums = (sum(vars(passes)[count] for count in COUNTS) for passes in planned.values())
    assert sum(sums) == 13.5


def test_selective_leaves_attention_out_of_what_is_computed_again() -> None:
    model = open_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    model = replace(model, transformer_config=model.transformer_config | {"num_layers": 2})
    found = {}
    for kind in KINDS:
        with torch.device("meta"):
            network = model.build_transformer()
            x_t, sigma = torch.empty(1, 16, 3, 12, 20), torch.empty(1)
            text = torch.empty(1, 512, model.text_dim)
        enable_checkpointing(network, kind)
        with FlopCounterMode(display=False) as counter, fused_attention():
            output = velocity(network, x_t, sigma, text)
            output.backward(torch.empty_like(output))
        found[kind] = counter.get_total_flops()
    forward = forward_operations(model.transformer_config, 3 * 6 * 10, 512)
    ends = forward_operations(model.transformer_config | {"num_layers": 0}, 3 * 6 * 10, 512)
    assert found["selective"] - found[False] == forward.linear - ends.linear
    assert found[True] - found["selective"] == forward.attention


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> WanModel:
    from tests.tiny import make_tiny_wan

    model = open_wan(make_tiny_wan(tmp_path_factory.mktemp("small")))
    return replace(model, transformer_config=model.transformer_config | SMALL_WAN)


def measured_pass(model: WanModel, what: Pass) -> tuple[int, int]:
    """The bytes that a forward keeps, and the peak of both passes, by torch's CPU allocator."""
    network = model.build_transformer()
    network.text_padding_is_folded = True  # no mask, for which CPUs have no fused kernel
    enable_checkpointing(network, what.checkpointing)
    x_t = torch.randn(what.batch, *what.latents).requires_grad_()
    text = torch.randn(what.batch, what.text_rows, model.text_dim)
    kept: list[Any] = []

    def forward() -> None:
        kept.append(velocity(network, x_t, torch.full((what.batch,), 0.5), text))

    def both() -> None:
        forward()
        output = kept.pop()
        torch.autograd.backward(output, torch.ones_like(output))

    before = peak_growth(forward, at_end=True)
    kept.clear()
    return before, peak_growth(both)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_what_the_meter_says(small_model: WanModel, kind: Checkpointing) -> None:
    latents = small_model.latent_shape(128, 128, 5)
    what = Pass(latents, 2, torch.float32, text_rows=8, checkpointing=kind, keeping=True)
    metered = meter_pass(small_model, what)
    kept, peak = measured_pass(small_model, what)
    assert metered.activations == pytest.approx(kept, rel=0.1)
    assert metered.backward_keeping == pytest.approx(peak, rel=0.1)


def test_selective_keeps_two_rows_of_a_token_and_block(small_model: WanModel) -> None:
    latents = small_model.latent_shape(128, 128, 5)
    what = Pass(latents, 1, torch.float32, text_rows=8, checkpointing=True)
    kept = {
        kind: meter_pass(small_model, replace(what, checkpointing=kind)).activations
        for kind in KINDS
    }
    assert kept[True] < kept["selective"] < kept[False] / 2
    rows = (kept["selective"] - kept[True]) / (4 * 2 * 16 * 16 * 4)
    assert rows == pytest.approx(2 * 384, rel=0.02)  # and a number a head


def test_other_values_are_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='"some" is not available; use false, selective or true'):
        load_job(job_file(tiny_teacher, tmp_path), ["parallel.gradient_checkpointing=some"])
