"""The VAE's decode in other settings than the engine's, beside the rows of the step ``vae``."""

from __future__ import annotations

from tools.gpu_check.context import Context
from tools.gpu_check.report import Step
from tools.gpu_check.steps.vae import OTHER_SETTINGS, measure_all


def run(context: Context, step: Step) -> None:
    """A row for each; its frames are compared with stock's if ``vae`` ran before it."""
    measure_all(context, step, OTHER_SETTINGS)
