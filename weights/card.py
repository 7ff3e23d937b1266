"""The model card of an export: what it is, how it was made, and how each program runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.manifest import FILE_NAME, Manifest
from lightx2v_sgmd.files.tensors.dtypes import TORCH_NAMES
from weights.export_spec import LOSSES_FILE, ExportSpec, Losses
from weights.io.model_spec import task_of
from weights.io.quantize import is_8_bit
from weights.io.source import ExportSource
from weights.public_names import public_name, public_options

_HEAD: Final = """\
---
library_name: {library}
pipeline_tag: {task}
license: {license}
{base_model}tags: [{task}, distillation, few-step, {method}, {format}, lightx2v-sgmd]
inference:
  parameters:
    num_inference_steps: {count}
    guidance_scale: 1.0
    height: {height}
    width: {width}{frames_line}
---

# A {count}-step {task} student{kind}

Distilled from `{teacher}` by {method_upper} with {trainer}. It makes {made} in {count} network
evaluations, without guidance.

{above}"""
_TABLE: Final = """\

## What it is

| | |
|---|---|
| teacher | `{teacher}` |
{started_from}{fine_tune}| method | {method} {options} |
| timesteps | {timesteps} (shift {shift:g} of {base}), {solver} |
| guidance when it is run | none (`guidance_scale=1.0`) |
| teacher's guidance in training | {guidance_scale:g}{negative} |
| trained for | {height}x{width}{frames} |
| trained | {trained} |
| data | {prompts} |
| iterations | {step}{ema} |
| stored as | {stored} |
"""
_FOOT: Final = """
Other timesteps, or guidance, give blurred or noisy results: the schedule is part of the weights. It
stands in `lightx2v_sgmd.json` and in the metadata of the safetensors files. `lightx2v-sgmd weights
verify THIS_FOLDER` checks that nothing has changed. The teacher's licence applies to this student
too.
"""
_ABOVE: Final = """\
It goes on top of {loras}, which it does not hold: load these
LoRA files first, each with the strength after its colon. The code and the workflows for other
programs below do not load them.

"""
_SOLVERS: Final = {
    "euler": "Euler",
    "ddim": "DDIM",
    "renoise": "each data prediction noised anew (renoise)",
}
_METRICS_ROWS: Final = 40
_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_LICENSES: Final = (
    (re.compile(r"sprites|Wan-AI/Wan2\.[12]-[\w.-]+|(zai-org|THUDM)/CogVideoX-2b"), "apache-2.0"),
    (re.compile(r"stabilityai/stable-diffusion-xl-base-1\.0"), "openrail++"),
)
"""Licences of published teachers, under the names that the hub gives them."""


def model_card(spec: ExportSpec, losses: Losses | None) -> str:
    """The card as Markdown, with the front matter of a hub page."""
    about = spec.source.about
    values = _values(spec, about)
    sections = [_HEAD.format(**values), spec.format.usage(spec, values)]
    sections += [_TABLE.format(**values), *_lost(losses), *_metrics(spec.source.metrics)]
    return "".join([*sections, _FOOT])


def _values(spec: ExportSpec, about: Manifest) -> dict[str, Any]:
    schedule = about.schedule.to_dict()
    name, options = str(about.method["name"]), public_options(about.method["options"])
    stored = spec.format.stored_as.format(dtype=spec.dtype, names=spec.names)
    if is_8_bit(spec.dtype):
        stored = f"8-bit floats with scales in attention and feed-forward, the rest bf16 ({stored})"
    return {
        "kind": _kind(spec),
        "library": spec.format.library,
        "format": spec.format.name,
        "license": _license(about),
        "base_model": _base_model(spec, about),
        "trained": _trained(spec.source),
        "method": name,
        "trainer": str(about.method.get("trainer", "lightx2v-sgmd")),
        "method_upper": name.upper(),
        "options": ", ".join(f"{k} {v}" for k, v in options.items()),
        "count": len(about.schedule),
        "teacher": public_name(about.teacher),
        "start": public_name(about.base),
        "started_from": ""
        if about.student_base is None
        else f"| student started from | `{public_name(about.student_base)}` |\n",
        "above": ""
        if not about.loras
        else _ABOVE.format(loras=" and ".join(f"`{lora}`" for lora in about.loras)),
        "fine_tune_options": "".join(f' --lora "{lora}" \\\n   ' for lora in about.loras),
        "fine_tune": ""
        if not about.loras
        else f"| goes on top of | the base with `{', '.join(about.loras)}` merged into it |\n",
        "torch_dtype": TORCH_NAMES.get(spec.dtype, "bfloat16"),
        "height": about.video.height,
        "width": about.video.width,
        "num_frames": about.video.num_frames,
        **_what_it_makes(spec, about),
        "timesteps": ", ".join(map(str, schedule["timesteps"])),
        "base": ", ".join(map(str, schedule["base"])),
        "shift": about.schedule.shift,
        "solver": _SOLVERS[about.schedule.solver],
        "guidance_scale": about.guidance_scale,
        "negative": _negative(about),
        "prompts": public_name(spec.source.prompts or "prompts; see the job that made it"),
        "step": about.step,
        "ema": ", moving average of the weights" if about.ema else "",
        "stored": stored,
    }


def _license(about: Manifest) -> str:
    """The licence of the teacher and of what the student started from; ``other`` if unknown."""
    found = {
        next((name for ids, name in _LICENSES if ids.fullmatch(model)), "other")
        for model in (about.teacher, about.base)
    }
    return found.pop() if len(found) == 1 else "other"


def _what_it_makes(spec: ExportSpec, about: Manifest) -> dict[str, str]:
    """The card's words for videos, or for images."""
    task = task_of(spec.source.model)
    if task == "text-to-image":
        return {"task": task, "made": "an image", "frames": "", "frames_line": ""}
    count, fps = about.video.num_frames, about.video.fps
    return {
        "task": task,
        "made": "a video from an image" if task == "image-to-video" else "a video",
        "frames": f", {count} frames at {fps:g} per second",
        "frames_line": f"\n    num_frames: {count}",
    }


def _base_model(spec: ExportSpec, about: Manifest) -> str:
    """The lines that name the model that a student started from; none if it is not on the hub."""
    if not _HUB_ID.fullmatch(about.base) or Path(about.base).exists():
        return ""
    relation = "quantized" if is_8_bit(spec.dtype) else "finetune"
    if spec.format.holds_adapters:
        relation = "adapter"
    return f"base_model: {about.base}\nbase_model_relation: {relation}\n"


def _negative(about: Manifest) -> str:
    """The card's sentence about the prompt that the teacher was guided away from."""
    if about.guidance_scale == 1 or about.negative_prompt is None:
        return ""
    if not about.negative_prompt:
        return ", away from the empty prompt"
    return f", away from the negative prompt in `{FILE_NAME}`"


def _kind(spec: ExportSpec) -> str:
    trained = ", trained as a LoRA" if spec.source.lora is not None else ""
    if spec.format.holds_adapters:
        return f"{trained}, as a LoRA for {_start(spec.source)}"
    return f"{trained} and merged into {_start(spec.source)}" if trained else ""


def _start(source: ExportSource) -> str:
    """The words for the model that the student started from."""
    return "its teacher" if source.about.student_base is None else "the model it started from"


def _trained(source: ExportSource) -> str:
    lora = source.lora
    if lora is None:
        return "all weights" if source.job_file is not None else "see the job that made it"
    whose = "the teacher" if source.about.student_base is None else "the model it started from"
    return (
        f"adapters (LoRA) of rank {lora.rank}, alpha {lora.scale * lora.rank:g}, on "
        f"{', '.join(lora.targets or source.model.adapter_targets)}; all else is {whose}'s"
    )


def _lost(losses: Losses | None) -> list[str]:
    if losses is None:
        return []
    return [f"\n## What is lost\n\n{losses.summary}. Layer by layer: `{LOSSES_FILE}`.\n"]


def _metrics(metrics: Mapping[str, Any] | None) -> list[str]:
    """A table of the numbers in an evaluation's ``metrics.json``."""
    if not metrics:
        return []
    rows = list(_numbers(metrics))[:_METRICS_ROWS]
    lines = ["\n## Measured\n\n| | |\n|---|---|\n", *(f"| {n} | {v:.4g} |\n" for n, v in rows)]
    return lines if rows else []


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
