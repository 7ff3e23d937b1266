"""The bundled teacher, whose weights are real, on this device against float32 on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from infer.engine import load_student
from infer.options import Options
from infer.result import Video
from lightx2v_sgmd.families.wan.opening import BUNDLED
from tools.gpu_check.context import Context, tf32
from tools.gpu_check.report import Row, Step
from tools.models.random_wan import PROMPT

SEED = 1
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "float32, TF32 off": ({"dtype": "fp32", "compile": False}, False),
    "float32, as it is": ({"dtype": "fp32", "compile": False}, True),
    "bfloat16, eager": ({"dtype": "bf16", "compile": False}, True),
    "defaults": ({}, True),
}
"""Options of the engine, and whether TF32 is allowed (PyTorch's default for convolutions)."""


def run(context: Context, step: Step) -> None:
    """A row for each variant."""
    reference: list[Video] = []

    def on_cpu() -> Video:
        if not reference:
            options = Options(assume_schedule="sgmd", device="cpu", dtype="fp32", compile=False)
            student = load_student(BUNDLED, options)
            reference.append(student.generate(PROMPT, SEED))
        return reference[0]

    for label, (options, allowed) in VARIANTS.items():

        def measure(row: Row, options: dict[str, Any] = options, allowed: bool = allowed) -> None:
            expected = on_cpu()
            with tf32(allowed):
                chosen = Options(assume_schedule="sgmd", device=context.device, **options)
                student = load_student(BUNDLED, chosen)
                made = student.generate(PROMPT, SEED)
                again = student.generate(PROMPT, SEED)
            row |= compared(made, expected)
            row |= {"dtype": str(student.dtype), "attention": student.attention}
            row |= {"compiled": student.plan.compile, "first_s": sum(made.timings.values())}
            row |= {"timings": again.timings}

        step.row(label, 35 if context.cuda and not options else 6, measure)


def compared(made: Video, expected: Video) -> Row:
    """The distance of latents and frames from the reference's."""
    frames = np.abs(made.frames.astype(int) - expected.frames.astype(int))
    return {
        "latents_max_difference": (made.latents - expected.latents).abs().max().item(),
        "frames_max_difference": int(frames.max()),
        "frames_mean_difference": float(frames.mean()),
    }
