"""The ceilings of the machine, which every other figure is read beside."""

from __future__ import annotations

from typing import Any

import torch

from infer.engine_plan import why_not_quantize
from tools.counting.bounds import machine_limits, median_seconds
from tools.gpu_check.context import Context, tf32
from tools.gpu_check.report import NotHere, Row, Step

SIDE = {"cuda": 8192, "cpu": 512}


def run(context: Context, step: Step) -> None:
    """Measures them; ``ceilings`` has them all in FLOP/s, bytes/s and seconds."""
    ceilings: dict[str, float] = step.data.setdefault("ceilings", {})
    device = context.device

    def basic(row: Row) -> None:
        found = machine_limits(device, context.dtype)
        ceilings.update(found)
        row |= {
            "tflops": found["flops"] / 1e12,
            "copy_tb_s": found["bandwidth"] / 1e12,
            "launch_us": found["launch"] * 1e6,
        }

    def half(row: Row) -> None:
        a = torch.randn(SIDE[device.type], SIDE[device.type], device=device).bfloat16()
        ceilings["flops_bf16"] = _rate(row, device, lambda: a @ a, len(a))

    def rounded(row: Row) -> None:
        if not context.cuda:
            raise NotHere("a CPU has no TF32")
        a = torch.randn(SIDE["cuda"], SIDE["cuda"], device=device)
        with tf32(True):
            torch.backends.cuda.matmul.allow_tf32 = True
            ceilings["flops_tf32"] = _rate(row, device, lambda: a @ a, len(a))

    def eight_bits(row: Row) -> None:
        reason = why_not_quantize("fp8", device)
        if reason is not None:
            raise NotHere(f"fp8 {reason}")
        side = SIDE["cuda"]
        a = torch.randn(side, side, device=device).to(torch.float8_e4m3fn)
        one = torch.ones(side, 1, device=device)

        def product() -> Any:
            return torch._scaled_mm(a, a.t(), one, one.t().contiguous(), out_dtype=torch.bfloat16)

        ceilings["flops_fp8"] = _rate(row, device, product, side)

    step.row("product in the engine's precision, copy, launch", 4, basic)
    step.row("bf16 product", 2, half)
    step.row("TF32 product", 2, rounded)
    step.row("fp8 product", 2, eight_bits)
    context.limits.update(ceilings)


def _rate(row: Row, device: torch.device, work: Any, side: int) -> float:
    rate = 2 * side**3 / median_seconds(work, device)
    row["tflops"] = rate / 1e12
    return rate
