"""The compiled network with each exact attention kernel that runs here."""

from __future__ import annotations

from tools.gpu_check.context import Context
from tools.gpu_check.report import Step
from tools.gpu_check.steps.forward import kernel_variants, measure_all


def run(context: Context, step: Step) -> None:
    """A row for each, as in the step ``forward``."""
    measure_all(context, step, kernel_variants(context))
