"""Compiled blocks of a tiny model of every family, in the engine and in training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from distill.model_checks import check_against_model
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.networks.block_loading import repeated_blocks
from lightx2v_sgmd.system.errors import UserError
from tests.families.conftest import SEEDS, Tiny
from tests.training import make_trainer

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that PyTorch made of blocks; they run as they are, without a compiler."""
    found: list[Any] = []
    real = torch.compile

    def backend(graph: Any, example: Any) -> Any:
        found.append(graph)
        return graph.forward

    def compile_(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **{**kwargs, "backend": backend, "options": None})

    monkeypatch.setattr(torch, "compile", compile_)
    return found


def kinds_of(network: Any) -> int:
    """Number of a network's blocks that differ in the shapes of their weights."""
    blocks = repeated_blocks(network)
    return len({tuple((name, p.shape) for name, p in b.named_parameters()) for b in blocks})


@needs_compiler
def test_each_kind_of_block_is_one_graph(
    tiny: Tiny, graphs: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    plain = tiny.student()
    compiled = tiny.student(compile=True)
    expected = tiny.latents(plain)
    capfd.readouterr()
    for _ in range(2):
        torch.testing.assert_close(tiny.latents(compiled), expected, atol=1e-4, rtol=1e-5)
    kinds = sum(kinds_of(plain.loaded.network_of(n)) for n in range(len(plain.model.experts)))
    assert kinds <= len(graphs) <= 2 * kinds  # the first block gets tensors of another layout
    assert "compile:" not in capfd.readouterr().err  # nothing failed, and one size was seen


@pytest.mark.slow
@needs_compiler
def test_compiled_blocks_give_the_same(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The C++ compiler's kernels, and those for a second size."""
    plain = tiny.student()
    compiled = tiny.student(compile=True, compile_cache=tmp_path / "kernels")
    height, width, frames = tiny.family.size
    for size in ((height, width, frames), (2 * height, width, frames)):
        rows = tiny.told(plain, size)
        got, expected = (each.denoise(rows, SEEDS, size) for each in (compiled, plain))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("compile:")]
    assert len(said) == len(plain.model.experts) and all("second size" in line for line in said)


def losses(tiny: Tiny, folder: Path, *settings: str) -> list[float]:
    """Losses and gradient norms of two iterations."""
    trainer = make_trainer(tiny.job(folder, *settings))
    done = [trainer.iterate(iteration) for iteration in range(2)]
    return [x for each in done for x in (*each.losses.values(), *each.grad_norm.values())]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_training_with_compiled_blocks_is_the_same(
    tiny: Tiny, tmp_path: Path, checkpointing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters beside weights in 8 bits; the backward passes are graphs, too."""
    if "fast_blocks" in open_model(tiny.folder).features:
        pytest.skip("tests/networks/test_compiled_passes.py compiles the passes of these")
    real, graphs = torch.compile, counters["stats"]["unique_graphs"]

    def compile_(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **{**kwargs, "backend": "aot_eager", "options": None})

    monkeypatch.setattr(torch, "compile", compile_)
    settings = f"parallel.gradient_checkpointing={checkpointing}"
    plain = losses(tiny, tmp_path, settings)
    assert counters["stats"]["unique_graphs"] == graphs
    compiled = losses(tiny, tmp_path, settings, "parallel.compile=always")
    assert counters["stats"]["unique_graphs"] > graphs
    assert compiled == pytest.approx(plain, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("parallel.strategy=zero3",), "needs parallel.strategy local, not zero3; use auto or"),
        (("parallel.gradient_checkpointing=selective",), "use true or false"),
    ],
)
def test_what_whole_blocks_do_not_go_with_is_refused(
    tiny: Tiny, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    model = open_model(tiny.folder)
    job = tiny.job(tmp_path, "teacher.quantize=none", "parallel.compile=always", *settings)
    if "fast_blocks" in model.features:
        check_against_model(job, model)
        return
    with pytest.raises(UserError, match=message):
        check_against_model(job, model)
