"""The least time that each phase of a training iteration could take, at the rates of the run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from distill.planning.flops import Operations, RolePasses, forward_operations, iteration_passes
from lightx2v_sgmd.families.teacher import with_defaults
from lightx2v_sgmd.families.text_rows import TEXT_LENGTH
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, TEACHER
from lightx2v_sgmd.system.resources import config_path

JOBS = {"14b": "wan2.1_t2v_1.3b_sgmd.yaml", "1.3b": "wan2.1_t2v_1.3b_sgmd.yaml"}
"""The job that the step ``training`` measures, by the report's shape."""
SETTINGS = {
    "local": ("parallel.strategy=local",),
    "zero3": ("parallel.strategy=zero3",),
    "local, selective": (
        "parallel.strategy=local",
        "parallel.gradient_checkpointing=selective",
    ),
}
"""The settings of each row of the steps ``training`` and ``selective``."""


class Least(NamedTuple):
    """Seconds of a phase at the rates that the run reached.

    Attributes:
        product: Seconds of the matrix products.
        attention: Seconds of attention.
    """

    product: float
    attention: float

    @property
    def total(self) -> float:
        """Seconds of both, one after the other."""
        return self.product + self.attention


def training_rate(attention_rows: dict[str, Any]) -> float | None:
    """The best rate in FLOP/s of a kernel that training uses; None if none was measured.

    Those are PyTorch's own, which have a backward pass; the wheel of FlashAttention 3 has none.
    """
    rates = [
        row["tflops"]
        for name, row in attention_rows.items()
        if name.startswith("sdpa") and "tflops" in row
    ]
    return max(rates) * 1e12 if rates else None


def least_seconds(
    shape: str, label: str, row: dict[str, Any], product_rate: float, attention_rate: float
) -> dict[str, Least]:
    """The least time by phase.

    A backward pass is counted at the rates of a forward one, which no kernel reaches.

    Args:
        shape: The report's shape.
        label: The row's label.
        row: The row; its ``tflop`` says which operations were counted when it was measured.
        product_rate: FLOP/s of a matrix product.
        attention_rate: FLOP/s of attention.

    Returns:
        Seconds by phase of ``bench_train``; {} if the job no longer has the operations of the row.
    """
    if shape not in JOBS or label not in SETTINGS or "tflop" not in row:
        return {}
    job = load_job(config_path(JOBS[shape]), [*SETTINGS[label], "train.accumulation=1"])
    work = phase_operations(job)
    counted = sum(each.linear + each.attention for each in work.values()) / 1e12
    if abs(counted / row["tflop"] - 1) > 1e-3:
        return {}
    return {
        phase: Least(each.linear / product_rate, each.attention / attention_rate)
        for phase, each in work.items()
    }


def phase_operations(job: Job) -> dict[str, Operations]:
    """The operations of a job's iteration by phase, with its shipped model and full weights."""
    model = open_wan(job.teacher.path)
    job = with_defaults(job, model)
    tokens = model.token_count(job.video.height, job.video.width, job.video.frames)
    forward = forward_operations(model.transformer_config, tokens, TEXT_LENGTH)
    passes = iteration_passes(job)
    student = passes[STUDENT]
    rollout = RolePasses(forwards=student.forwards)
    phases = {
        "rollout": rollout,
        "teacher": passes[TEACHER],
        "fake score": passes[FAKE_SCORE],
        "student backward": replace(student, forwards=0),
    }
    videos = job.train.micro_batch * job.train.accumulation
    found = {}
    for phase, each in phases.items():
        linear = each.operations(Operations(forward.linear, 0))
        attention = each.operations(Operations(0, forward.attention))
        found[phase] = Operations(round(videos * linear), round(videos * attention))
    return found
