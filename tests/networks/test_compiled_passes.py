"""Compiled passes in training: the numbers of PyTorch's own operations, whatever the job.

The compiler's front end runs here, and its kernels once: they take long to make. A Fisher term is
the square of a small difference: it agrees to 1e-9, but not in six digits of its own.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.files.checkpoint import checkpoint_name, find_checkpoint
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.networks import compiled_passes
from lightx2v_sgmd.networks.gradient_checkpointing import enable_checkpointing
from lightx2v_sgmd.parallel import local
from lightx2v_sgmd.system import compilers
from lightx2v_sgmd.system.compilers import compiles
from lightx2v_sgmd.system.errors import UserError
from tests.parallel.ranks import run_ranks
from tests.parallel.test_sequence import TINY, tiny_network
from tests.training import (
    job_file,
    make_job,
    make_trainer,
    needs_deepspeed,
    read_trace,
    train,
    weights_of,
)

ITERATIONS = 2


def results(teacher: Path, folder: Path, *settings: str, ranks: Any = None) -> list[float]:
    """Losses and gradient norms of a few iterations."""
    job = make_job(teacher, folder, *settings)
    trainer = make_trainer(job, ranks, job.parallel.strategy)
    done = [trainer.iterate(iteration) for iteration in range(ITERATIONS)]
    trainer.strategy.close()
    return [x for each in done for x in (*each.losses.values(), *each.grad_norm.values())]


@pytest.fixture
def front_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        local, "compile_passes", partial(compiled_passes.compile_passes, backend="aot_eager")
    )


@pytest.mark.usefixtures("front_end_alone")
@pytest.mark.parametrize(
    "settings",
    [
        ("parallel.gradient_checkpointing=selective", "train.accumulation=2"),
        pytest.param(
            ("student={train: lora, lora: {rank: 4}}", "fake_score={train: lora, lora: {rank: 4}}"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("teacher.dtype=bfloat16", "parallel.gradient_checkpointing=true"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_job_trains_the_same(
    tiny_teacher: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    compiled = results(tiny_teacher, tmp_path, "parallel.compile=always", *settings)
    assert counters["stats"]["unique_graphs"] > 6 and not counters["graph_break"]
    plain = results(tiny_teacher, tmp_path, "parallel.compile=never", *settings)
    assert compiled == pytest.approx(plain, rel=1e-6, abs=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("front_end_alone")
def test_resuming_gives_the_same_run(tiny_teacher: Path, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    settings = ("parallel.compile=always", "train.iterations=3", "train.checkpoint_every=2")
    straight = make_job(tiny_teacher, tmp_path / "straight", *settings)
    train(straight)
    job = make_job(tiny_teacher, tmp_path / "resumed", *settings)
    folder = Path("checkpoints") / checkpoint_name(2)
    shutil.copytree(straight.output.dir / folder, job.output.dir / folder)
    counters.clear()
    train(job)
    assert counters["stats"]["unique_graphs"] > 6  # compiled anew
    assert read_trace(job.output.dir) == read_trace(straight.output.dir)[2:]
    ours, theirs = (weights_of(find_checkpoint(run.output.dir)) for run in (job, straight))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.slow
def test_kernels_train_the_same(tiny_teacher: Path, tmp_path: Path) -> None:
    settings = ("parallel.gradient_checkpointing=selective",)
    compiled = results(tiny_teacher, tmp_path, "parallel.compile=always", *settings)
    plain = results(tiny_teacher, tmp_path, "parallel.compile=never", *settings)
    # Float32 itself is off by up to 5e-6: see ``test_compiled_passes_rounding``.
    assert compiled == pytest.approx(plain, rel=1e-5, abs=1e-9)
    assert compiled != plain  # or nothing was compiled


def zero3_results(teacher: Path, folder: Path, settings: tuple[str, ...]) -> list[float]:
    from lightx2v_sgmd.parallel import connect
    from lightx2v_sgmd.parallel.zero3 import strategy

    strategy.compile_passes = partial(compiled_passes.compile_passes, backend="aot_eager")  # type: ignore[attr-defined]
    ranks = connect("zero3", torch.device("cpu"))
    own = folder / str(ranks.rank)
    return results(teacher, own, *settings, ranks=replace(ranks, share=2))


@needs_deepspeed
@pytest.mark.slow
def test_ranks_that_share_a_video_train_the_same(tiny_teacher: Path, tmp_path: Path) -> None:
    settings = (
        "parallel.strategy=zero3",
        "parallel.sequence=2",
        "parallel.gradient_checkpointing=true",
    )
    found = [
        run_ranks(
            2, zero3_results, tiny_teacher, tmp_path, (*settings, f"parallel.compile={setting}")
        )
        for setting in ("always", "never")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6, abs=1e-9)


def test_one_token_has_its_own_time() -> None:
    """And the text, the time and the tokens get the gradients of diffusers' block."""
    ours, theirs = tiny_network(), tiny_network()
    compiled_passes.compile_passes(ours, backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    width = TINY["num_attention_heads"] * TINY["attention_head_dim"]
    for times in ((2, 6, width), (2, 10, 6, width)):
        x = torch.randn(2, 10, width, generator=generator)
        given = [
            x,
            torch.randn(2, 5, width, generator=generator),
            torch.randn(times, generator=generator),
        ]
        rotary = [torch.randn(1, 10, 1, 12, generator=generator).repeat_interleave(1, -1)] * 2
        found = []
        for network in (ours, theirs):
            inputs = [value.clone().requires_grad_() for value in given]
            output = network.blocks[0](*inputs, rotary)
            found.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
        for mine, expected in zip(*found, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_many_sizes_end_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the compiler makes kernels for; with gradient and without."""
    from torch._dynamo import config

    monkeypatch.setattr(compiled_passes, "RECOMPILATIONS", 2)
    network = tiny_network()
    enable_checkpointing(network, True)
    compiled_passes.compile_passes(network, backend="eager")
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 4, 16, generator=generator)
    with config.patch(recompile_limit=2):
        for width in range(1, 7):
            x_t = torch.randn(1, 4, 1, 2, 2 * width, generator=generator)
            with torch.set_grad_enabled(width % 2 == 0):
                assert velocity(network, x_t, torch.tensor([0.5]), text).isfinite().all()


def test_weights_get_no_gradient_that_nobody_asked_for() -> None:
    """A backward pass to the inputs alone runs no product for a weight."""
    from torch.utils.flop_counter import FlopCounterMode

    def operations(compiled: bool) -> int:
        network = tiny_network()
        if compiled:
            compiled_passes.compile_passes(network, backend="aot_eager")
        x_t = torch.randn(1, 4, 1, 4, 4, requires_grad=True)
        output: Tensor = velocity(network, x_t, torch.tensor([0.5]), torch.randn(1, 4, 16))
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(output.sum(), x_t)
        return int(counter.get_total_flops())

    assert operations(True) == operations(False) > 0


def test_the_job_decides(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not compiles("never", gpu) and not compiles("auto", cpu)
    monkeypatch.setattr(compilers, "compiler_problem", lambda device: "")
    assert compiles("always", cpu) and compiles("auto", gpu)
    monkeypatch.setattr(compilers, "compiler_problem", lambda device: "a compiler; install it")
    assert not compiles("auto", gpu)
    with pytest.raises(
        UserError, match="parallel.compile: always needs a compiler; install it, or"
    ):
        compiles("always", gpu)
    with pytest.raises(UserError, match="use auto, always or never"):
        load_job(job_file(tiny_teacher, tmp_path), ["parallel.compile=yes"])


def test_gradients_are_not_summed_by_a_kernel_that_gets_them_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def compile_(function: Any, **settings: Any) -> Any:
        asked.append(settings["options"])
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    compiled_passes.Passes()
    known = hasattr(torch._inductor.config.triton, "mix_order_reduction")
    assert asked == [{"triton.mix_order_reduction": False} if known else {}] * 6


@pytest.mark.gpu
def test_gradients_over_many_tokens_are_the_plain_ones() -> None:
    """Sums over so many tokens were wrong in some releases of PyTorch's compiler."""
    source, (tokens, width) = torch.Generator("cuda").manual_seed(0), (16_384, 512)

    def numbers(*size: int) -> Tensor:
        return torch.randn(size, device="cuda", generator=source).requires_grad_()

    x, change = numbers(1, tokens, width), numbers(1, tokens, width)
    row, vector = numbers(1, 1, width), numbers(width)
    passes, eps = compiled_passes.Passes(), 1e-6
    cases: dict[str, tuple[Any, ...]] = {
        "modulate": (x, row, numbers(1, 1, width), eps),
        "gate": (x, change, row),
        "add_and_modulate": (x, change, row, numbers(1, 1, width), eps),
        "layer_norm": (x, vector, numbers(width), eps),
        "rms_norm": (x, vector, eps),
    }
    for name, inputs in cases.items():
        leaves = [each for each in inputs if isinstance(each, Tensor)]
        gradients = []
        for function in (getattr(passes, name), getattr(compiled_passes, f"_{name}")):
            out = function(*inputs)
            out = torch.cat(out) if isinstance(out, tuple) else out
            weights = torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)
            gradients.append(torch.autograd.grad((out * weights).sum(), leaves))
        for ours, plain in zip(*gradients, strict=True):
            assert ((ours - plain).norm() / plain.norm()) < 1e-4, name
