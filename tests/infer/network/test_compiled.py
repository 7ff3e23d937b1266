"""Compiled generation: the same videos, of any number of sizes, whatever the compiler does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.students import load_student

PROMPT = "a red circle moving left"
LONG = " ".join(["a red circle and a blue square moving left"] * 3)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def plain(shared_student: Path) -> Any:
    return load_student(shared_student, compile=False)


@pytest.fixture(scope="module")
def compiled(shared_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "other"))
        yield load_student(shared_student, compile=True, compile_cache=folder / "kernels")


@pytest.mark.slow
@needs_compiler
def test_a_compiled_network_gives_the_same(plain: Any, compiled: Any) -> None:
    kernels = compiled.plan.options.compile_cache
    got = compiled.generate(PROMPT, 3, decode=False).latents
    expected = plain.generate(PROMPT, 3, decode=False).latents
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert any(kernels.iterdir()) and not (kernels.parent / "other").exists()
    # Prompts of other lengths have the same shapes, so nothing is compiled again.
    graphs = counters["stats"]["unique_graphs"]
    compiled.generate("a red circle", 3, decode=False)
    assert counters["stats"]["unique_graphs"] == graphs > 0


@pytest.mark.slow
@needs_compiler
def test_forty_sizes_and_batches_in_one_process(
    plain: Any, compiled: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """TorchDynamo's limit is eight; here all but the first share two graphs."""
    graphs = counters["stats"]["unique_graphs"]
    shapes = [
        (batch, height, width, frames)
        for batch in (1, 2, 3, 4)
        for height, width in ((16, 48), (32, 32), (48, 16), (64, 32), (32, 80))
        for frames in (1, 5)
    ]
    assert len(set(shapes)) == 40
    for index, (batch, height, width, frames) in enumerate(shapes):
        prompts = [LONG if index % 3 == 0 else PROMPT] * batch
        got, expected = (
            student.generate(
                prompts, index, height=height, width=width, num_frames=frames, decode=False
            ).latents
            for student in (compiled, plain)
        )
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert counters["stats"]["unique_graphs"] - graphs <= 3
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("compile:")]
    assert len(said) <= 1 and all("second size" in line for line in said)


@pytest.mark.slow
@needs_compiler
def test_a_compiler_that_fails_costs_a_line(
    shared_student: Path, plain: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    os.chmod(broken, 0o755)
    with (
        pytest.MonkeyPatch.context() as patch,
        torch._inductor.config.patch({"cpp.cxx": (str(broken),)}),
    ):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "other"))
        student = load_student(shared_student, compile=True, compile_cache=tmp_path / "kernels")
        got = student.generate(PROMPT, 3, height=48, decode=False).latents
    expected = plain.generate(PROMPT, 3, height=48, decode=False).latents
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    said = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(said) == 1 and said[0].startswith("compile: failed")
