"""A whole video by the engine as it comes, by stage, and its memory beside what was planned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from infer.engine import Student
from infer.engine_plan import make_plan
from infer.options import Options
from tools.gpu_check.context import Context
from tools.gpu_check.report import Row, Step
from tools.gpu_check.steps.forward import planned_gib
from tools.models.random_wan import PROMPT


class MeteredStudent(Student):
    """A student that also meters the GPU's memory in each stage.

    Attributes:
        context: Meters.
        peaks: By stage, in GiB.
    """

    context: Context
    peaks: dict[str, float]

    @contextmanager
    def timed(self, timings: dict[str, float], stage: str) -> Iterator[None]:
        """Times a stage as the engine does, and takes its peak of memory."""
        with self.context.peak(self.peaks, stage), super().timed(timings, stage):
            yield


def run(context: Context, step: Step) -> None:
    """One row: two videos by one student, the first of which loads and compiles."""
    expected = 20 + context.compile_s * context.cuda + 10 * context.forward_s
    step.row("engine, as it comes", expected, lambda row: two_videos(context, row))


def two_videos(context: Context, row: Row) -> None:
    """Fills the row."""
    model, (height, width, frames) = context.model, context.size
    plan = make_plan(model, Options(device=context.device), context.size)
    start = time.perf_counter()
    with context.peak(row, "load_peak_gib"):
        student = MeteredStudent(context.checked, plan)
        context.sync()
    row |= {
        "load_s": time.perf_counter() - start,
        "attention": plan.attention,
        "compiled": plan.compile,
        "memory_mode": plan.memory_mode.flags(),
    }
    for name in ("first", "second"):
        student.context, student.peaks = context, {}
        made = student.generate(PROMPT, 0, height=height, width=width, num_frames=frames)
        row[name] = {**made.timings, "total": sum(made.timings.values())}
    row["s"] = row["second"]["total"]
    row["needed_gib"] = planned_gib(context, plan)
    if context.cuda:
        beside = context.beside_pytorch_gib()
        row["beside_pytorch_gib"] = beside
        row["measured_gib"] = {stage: peak + beside for stage, peak in student.peaks.items()}
        row["measured_gib"]["load"] = row["load_peak_gib"] + beside
        row["memory_ratio"] = {
            stage: row["measured_gib"][stage] / needed
            for stage, needed in row["needed_gib"].items()
            if stage in row["measured_gib"]
        }
