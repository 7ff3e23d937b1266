"""The description of itself that a file of weights has in its header, for model managers.

The keys are those of Stability AI's ModelSpec 1.0.0 (https://github.com/Stability-AI/ModelSpec);
``wan2.1`` is the architecture that musubi-tuner and others write. There is no date: the same
student gives the same file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weights.public_names import public_name

if TYPE_CHECKING:
    from weights.export_spec import ExportSpec


def model_spec(spec: ExportSpec) -> dict[str, str]:
    """The entries of a header that name an export's architecture, title, size and use."""
    about = spec.source.about
    adapters = spec.format.holds_adapters
    method, count, base = str(about.method["name"]), len(about.schedule), about.base
    kind = "LoRA" if adapters else "student"
    told = {
        "sai_model_spec": "1.0.0",
        "architecture": "wan2.1/lora" if adapters else "wan2.1",
        "implementation": "https://github.com/Wan-Video/Wan2.1",
        "title": f"{public_name(base)}, {count}-step {kind} by {method}",
        "description": f"Makes a video in {count} steps without guidance.",
        "resolution": f"{about.video.width}x{about.video.height}",
        "usage_hint": f"{count} Euler steps at shift {about.schedule.shift:g}, guidance scale 1",
        "tags": f"text-to-video, distillation, {method}",
    }
    return {f"modelspec.{key}": value for key, value in told.items()}
