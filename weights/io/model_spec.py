"""The description of itself that a file of weights has in its header, for model managers.

The keys are those of Stability AI's ModelSpec 1.0.0 (https://github.com/Stability-AI/ModelSpec);
the architectures are those that kohya's trainers write. There is no date: the same student gives
the same file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightx2v_sgmd.families.base import Model
from weights.public_names import public_name

if TYPE_CHECKING:
    from weights.export_spec import ExportSpec


def task_of(model: Model) -> str:
    """The task of a model, in the hub's words."""
    if model.size_rules.images:
        return "text-to-image"
    return "image-to-video" if model.takes_image == "always" else "text-to-video"


def model_spec(spec: ExportSpec) -> dict[str, str]:
    """The entries of a header that name an export's architecture, title, size and use.

    Returns:
        Nothing for a network whose architecture has no name there, or whose export describes itself
        in other files.
    """
    about, model = spec.source.about, spec.source.model
    adapters = spec.format.holds_adapters
    architecture = model.pipeline.architecture
    if not architecture or not spec.format.described:
        return {}
    task, schedule = task_of(model), about.schedule
    method, steps = str(about.method["name"]), _steps(len(schedule))
    kind = "LoRA" if adapters else "student"
    expert = f", {spec.part} expert" if spec.part else ""
    made = "an image" if task == "text-to-image" else "a video"
    told = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{architecture}/lora" if adapters else architecture,
        "implementation": model.pipeline.implementation,
        "title": f"{public_name(about.base)}, {len(schedule)}-step {kind} by {method}{expert}",
        "description": f"Makes {made} in {steps} without guidance.",
        "resolution": f"{about.video.width}x{about.video.height}",
        "usage_hint": f"{steps} at shift {schedule.shift:g}, solver {schedule.solver}, "
        "guidance scale 1",
        "tags": f"{task}, distillation, {method}",
    }
    return {f"modelspec.{key}": value for key, value in told.items()}


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
