"""Training iterations with attention's outputs stored, beside those of the step ``training``."""

from __future__ import annotations

from tools.gpu_check.context import Context
from tools.gpu_check.report import Step
from tools.gpu_check.steps.training import measure

SETTING = "parallel.gradient_checkpointing=selective"


def run(context: Context, step: Step) -> None:
    """One row: the strategy ``local``, which computes attention once for each graph."""
    measure(context, step, "local, selective", "local", 105 if context.cuda else 30, SETTING)
