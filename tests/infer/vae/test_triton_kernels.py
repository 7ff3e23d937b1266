"""Triton's kernels without a GPU: built for two of its kinds, and run by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightx2v_sgmd.system.optional_packages import why_unusable

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(
    why_unusable("triton") is not None, reason="Triton is not installed; PyTorch for GPUs brings it"
)
BUILD = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from infer.vae import triton_kernels as kernels

def build(kernel, pointers, numbers, constants, capability):
    names = kernel.arg_names
    kinds = [*pointers, *numbers, *["constexpr"] * len(constants)]
    signature = dict(zip(names, kinds, strict=True))
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(pointers) + len(numbers))}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]

for capability in (80, 90):
    for dtype in ("*fp32", "*fp16", "*bf16"):
        for channels in (96, 384):
            width = triton.next_power_of_2(channels)
            sizes = {"block": 4096 // width, "width": width}
            sizes |= {"channels": channels, "with_bias": True}
            numbers = ["i32", "i64", "i64"]
            ptx = build(kernels._norm_silu, [dtype, "*fp32", dtype, dtype], numbers,
                        {"eps": 1e-12, **sizes}, capability)
            ptx += build(kernels._add, [dtype] * 3, numbers, sizes, capability)
            assert "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx
print("built")
"""
RUN = """
import contextlib
import torch
from infer.vae import triton_kernels
from infer.vae.kernels import EAGER, rows

torch.cuda.device = lambda device: contextlib.nullcontext()
layout = torch.channels_last_3d
for dtype in (torch.float32, torch.float16):
    for bias in (None, torch.randn(12, dtype=dtype)):
        x = torch.randn(2, 12, 3, 5, 7).to(dtype, memory_format=layout)
        x[:, :, 0, 0, 0] = 0
        whole = torch.full((2, 12, 5, 5, 7), 7.0).to(dtype, memory_format=layout)
        exact = torch.empty(3, 2, 12, 5, 7).movedim(0, 2).contiguous(memory_format=layout)
        gamma, addend = torch.rand(12), None if bias is None else bias.float()
        triton_kernels.norm_silu(rows(x), gamma, rows(whole[:, :, 2:]), bias)
        EAGER.norm_silu(rows(x).float(), gamma, rows(exact), addend)
        rounding = 4 * torch.finfo(dtype).eps
        assert torch.allclose(whole[:, :, 2:].float(), exact, rtol=rounding, atol=rounding)
        assert (whole[:, :, :2] == 7).all()
        total = x.clone()
        triton_kernels.add(rows(total), rows(x), bias)
        added = 2 * x.float() + (0 if addend is None else addend.view(-1, 1, 1, 1))
        assert torch.allclose(total.float(), added, rtol=rounding, atol=rounding)
print("ran")
"""


@pytest.mark.parametrize(
    ("code", "interpreted", "said"), [(BUILD, "0", "built"), (RUN, "1", "ran")]
)
def test_kernels(code: str, interpreted: str, said: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": interpreted, "PYTHONPATH": str(ROOT)}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == said, done.stderr[-2000:]
