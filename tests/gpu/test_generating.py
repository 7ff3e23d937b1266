"""The engine computes on a GPU what it computes on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import BUNDLED, open_wan
from lightx2v_sgmd.networks import attention
from tests.students import load_student
from tools.gpu_check.steps.attention import sampled_error

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
PROMPT = "a red circle moving left quickly"
TEACHER: dict[str, Any] = {"assume_schedule": "sgmd"}


@pytest.mark.usefixtures("exact_float32")
def test_the_bundled_teacher_in_float32(tmp_path: Path) -> None:
    """Four steps in float32: latents to 1e-3, frames to one of 255 levels."""
    expected = load_student(BUNDLED, **TEACHER).generate(PROMPT, 1)
    student = load_student(BUNDLED, **TEACHER, device=CUDA, dtype=torch.float32, compile=False)
    made = student.generate(PROMPT, 1)
    torch.testing.assert_close(made.latents, expected.latents, atol=1e-3, rtol=0)
    assert np.abs(made.frames.astype(int) - expected.frames.astype(int)).max() <= 1


@pytest.mark.usefixtures("exact_float32")
def test_one_forward_in_float32() -> None:
    model = open_wan(BUNDLED)
    network = model.load_transformer()
    generator = torch.Generator().manual_seed(3)
    x_t = torch.randn(2, *model.latent_shape(32, 32, 9), generator=generator)
    text = pad_text([torch.randn(7, model.text_dim, generator=generator) for _ in range(2)])
    sigma = torch.tensor([0.9, 0.4])
    with torch.no_grad():
        expected = velocity(network, x_t, sigma, text)
        got = velocity(network.to(CUDA), x_t.to(CUDA), sigma.to(CUDA), text.to(CUDA))
    torch.testing.assert_close(got.cpu(), expected, atol=1e-4, rtol=1e-4)


def test_the_defaults_are_near_the_cpu() -> None:
    """bfloat16, compiled, the kernel that ``auto`` takes: the video shows the same."""
    expected = load_student(BUNDLED, **TEACHER).generate(PROMPT, 1)
    student = load_student(BUNDLED, **TEACHER, device=None)
    assert student.device.type == "cuda" and student.dtype == torch.bfloat16
    made = student.generate(PROMPT, 1)
    assert np.abs(made.frames.astype(int) - expected.frames.astype(int)).mean() < 5
    # A last batch that is smaller, and another size, need kernels of their own.
    several = student.generate([PROMPT, "a blue square"], 1, batch_size=2, decode=False)
    longer = student.generate(PROMPT, 1, num_frames=13, decode=False)
    assert several.latents.isfinite().all() and longer.latents.isfinite().all()


@pytest.mark.parametrize("name", [n for n, k in attention.KERNELS.items() if not k.approximate])
def test_a_kernel_with_a_ragged_last_tile(name: str) -> None:
    """Lengths that are no multiple of a tile, as Wan's 32,760 tokens are: error below 2e-2."""
    found = {k.name: k for k in attention.kernels(CUDA, torch.bfloat16, 128)}[name]
    if not found.available:
        pytest.skip(found.reason)
    generator = torch.Generator(CUDA).manual_seed(0)
    for length, keys in ((4 * 128 + 120, 4 * 128 + 120), (300, 512), (129, 37)):
        shapes = [(1, count, 6, 128) for count in (length, keys, keys)]
        q, k, v = (
            torch.randn(shape, device=CUDA, dtype=torch.bfloat16, generator=generator)
            for shape in shapes
        )
        with torch.no_grad():
            got = attention.attend(name, q, k, v)
        assert sampled_error(got, q, k, v) < 2e-2, (name, length, keys)


@pytest.mark.usefixtures("exact_float32")
def test_parts_that_take_turns_and_tiles() -> None:
    """One part at a time on the GPU gives what all at once give."""
    together = load_student(BUNDLED, **TEACHER, device=CUDA, compile=False)
    apart = load_student(BUNDLED, **TEACHER, device=CUDA, compile=False, one_at_a_time=True)
    expected = together.generate(PROMPT, 1)
    for _ in range(2):
        made = apart.generate(PROMPT, 1)
        torch.testing.assert_close(made.latents, expected.latents, atol=1e-5, rtol=0)
        assert np.abs(made.frames.astype(int) - expected.frames.astype(int)).max() <= 1


@pytest.mark.usefixtures("exact_float32")
def test_offloaded_blocks_compute_the_same() -> None:
    options = {**TEACHER, "device": CUDA, "compile": False}
    expected = load_student(BUNDLED, **options).generate(PROMPT, 1, decode=False).latents
    offloaded = load_student(BUNDLED, **options, offload=True)
    for _ in range(2):
        made = offloaded.generate(PROMPT, 1, decode=False).latents
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
