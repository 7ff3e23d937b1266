from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from infer.vae.kernels import (
    Kernels,
    OrPlain,
    add,
    fused,
    fused_add,
    fused_norm_silu,
    norm_silu,
    rows,
)

LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)


def chunk(layout: torch.memory_format, frames: int = 3) -> Tensor:
    x = torch.randn(2, 16, frames, 4, 5, generator=torch.Generator().manual_seed(frames))
    x[:, :, 0, 0, 0] = 0  # has no direction
    return x.contiguous(memory_format=layout)


def expected(x: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Tensor:
    """``silu(gamma * x / |x|)`` in float64."""
    x = x.double().movedim(1, -1)
    if bias is not None:
        x = x + bias
    length = x.square().sum(-1, keepdim=True).sqrt()
    y = torch.where(length > 0, x / length, 0.0) * gamma
    return (y / (1 + torch.exp(-y))).movedim(-1, 1).float()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operation", [norm_silu, fused_norm_silu])
def test_norm_and_silu_write_a_part_of_the_next_input(
    operation: Callable[..., None], layout: torch.memory_format
) -> None:
    x, gamma, bias = chunk(layout), torch.randn(16), torch.randn(16)
    whole = torch.full((2, 16, 5, 4, 5), 7.0).contiguous(memory_format=layout)
    for addend in (None, bias):
        operation(rows(x), gamma, rows(whole[:, :, 2:]), addend)
        torch.testing.assert_close(whole[:, :, 2:], expected(x, gamma, addend))
        assert (whole[:, :, :2] == 7).all()


@pytest.mark.parametrize("operation", [add, fused_add])
def test_add_changes_its_first_argument(operation: Callable[..., None]) -> None:
    x, y, bias = chunk(LAYOUTS[1]), chunk(LAYOUTS[0]), torch.randn(16)
    sum_ = x + y
    operation(rows(x), rows(y))
    assert torch.equal(x, sum_)
    operation(rows(x), rows(y), bias)
    torch.testing.assert_close(x, sum_ + y + bias.view(-1, 1, 1, 1))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_compiler_makes_one_kernel_for_any_number_of_frames(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The count of the decode's passes takes a fused operation for one kernel."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    fused.cache_clear()
    kernels: Kernels = fused("cpu")
    gamma, bias = torch.randn(16), torch.randn(16)

    def run(frames: int) -> None:
        x = chunk(LAYOUTS[1], frames)[:1]
        out, total = torch.empty_like(x), x.clone()
        kernels.norm_silu(rows(x), gamma, rows(out), bias)
        kernels.add(rows(total), rows(x), bias)
        torch.testing.assert_close(out, expected(x, gamma, bias))
        torch.testing.assert_close(total, 2 * x + bias.view(-1, 1, 1, 1))

    _, sources = run_and_get_code(run, 4)
    assert [source.count("async_compile.cpp_pybinding(") for source in sources] == [1, 1]
    graphs = counters["stats"]["unique_graphs"]
    run(2)
    run(7)
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [96, 384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tritons_kernels_compute_what_the_plain_operations_do(
    dtype: torch.dtype, channels: int
) -> None:
    source = torch.Generator().manual_seed(channels)
    size = (2, channels, 3, 9, 7)
    x = torch.randn(size, generator=source).to("cuda", dtype, memory_format=LAYOUTS[1])
    x[:, :, 0, 0, 0] = 0
    gamma, bias = torch.rand(channels, device="cuda"), torch.randn(channels).to("cuda", dtype)
    whole = torch.full((2, channels, 5, 9, 7), 7.0, device="cuda", dtype=dtype)
    whole = whole.contiguous(memory_format=LAYOUTS[1])
    kernels, rounding = fused("cuda"), 2 * torch.finfo(dtype).eps
    for addend in (None, bias):
        kernels.norm_silu(rows(x), gamma, rows(whole[:, :, 2:]), addend)
        exact = expected(x.cpu(), gamma.cpu(), None if addend is None else addend.cpu())
        close = torch.isclose(whole[:, :, 2:].float().cpu(), exact, rtol=rounding, atol=1e-6)
        assert close.all()
        assert (whole[:, :, :2] == 7).all()
        total = x.clone()
        kernels.add(rows(total), rows(x), addend)
        added = 2 * x.double() + (0 if addend is None else addend.double().view(-1, 1, 1, 1))
        assert torch.isclose(total.double(), added, rtol=rounding, atol=1e-6).all()


def test_a_kernel_that_cannot_be_built_is_done_without(capsys: pytest.CaptureFixture[str]) -> None:
    def unbuildable(*tensors: Tensor | None) -> None:
        raise RuntimeError("Failed to find C compiler\nmore")

    operation = OrPlain(unbuildable, add)
    x = torch.ones(1, 2, 3)
    operation(x, torch.ones(1, 2, 3))
    operation(x, torch.ones(1, 2, 3))
    assert torch.equal(x, torch.full((1, 2, 3), 3.0))
    said = capsys.readouterr().err
    assert said.count("a kernel could not be built (RuntimeError: Failed to find C compiler)") == 1
