"""The model card of an export: what it is, how it was made, and how each program runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from lightx2v_sgmd.files.dtypes import TORCH_NAMES
from lightx2v_sgmd.files.manifest import Manifest
from weights.export_spec import LOSSES_FILE, ExportSpec, Losses
from weights.formats import comfyui
from weights.formats.comfyui_workflow import TEXT_ENCODER, VAE, WORKFLOW_FILE
from weights.formats.layouts import LORA_FILE
from weights.formats.wan import LIGHTX2V_FILE
from weights.io.source import Source

_HEAD: Final = """\
---
library_name: diffusers
pipeline_tag: text-to-video
tags: [text-to-video, distillation, few-step, {method}, lightx2v-sgmd]
---

# A {count}-step text-to-video student{kind}

Distilled from `{teacher}` by {method_upper} with lightx2v-sgmd. It makes a video in {count} network
evaluations, without guidance.

"""
_TABLE: Final = """\

## What it is

| | |
|---|---|
| teacher | `{teacher}` |
| method | {method} {options} |
| timesteps | {timesteps} (shift {shift:g} of {base}), Euler |
| guidance when it is run | none (`guidance_scale=1.0`) |
| teacher's guidance in training | {guidance_scale:g} |
| trained for | {height}x{width}, {num_frames} frames at {fps:g} per second |
| trained | {trained} |
| data | {prompts} |
| iterations | {step}{ema} |
| stored as | {stored} |
"""
_FOOT: Final = """
Other timesteps, or guidance, give blurred or noisy videos: the schedule is part of the weights. It
stands in `lightx2v_sgmd.json` and in the metadata of the safetensors files. `lightx2v-sgmd weights
verify THIS_FOLDER` checks that nothing has changed. The teacher's licence applies to this student
too.
"""
_DIFFUSERS: Final = """\
## diffusers

```python
import torch
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained("THIS_FOLDER", torch_dtype=torch.{torch_dtype})
video = pipe(
    "a prompt",
    height={height},
    width={width},
    num_frames={num_frames},
    num_inference_steps={count},
    guidance_scale=1.0,
).frames[0]
```

## lightx2v-sgmd, with the fastest attention kernel of the machine

```
lightx2v-sgmd generate --weights THIS_FOLDER --prompt "a prompt" --out video.mp4
```
"""
_LIGHTX2V: Final = """\
## LightX2V

```
python -m lightx2v.infer --model_cls wan2.1_distill --task t2v \\
    --model_path /path/to/Wan2.1-T2V --config_json {job} \\
    --prompt "a prompt" --negative_prompt "" --save_result_path video.mp4
```

`/path/to/Wan2.1-T2V` is the original folder of the teacher, for its text encoder and VAE. Do not
put these weights into it: LightX2V would mix the two. `{file}` has the steps, no guidance, and the
place of the weights: change that line if you move this folder.
"""
_COMFYUI: Final = """\
## ComfyUI

Put `{weights}` into `ComfyUI/models/diffusion_models`, Wan2.1's text encoder
(`{text_encoder}`) into `models/text_encoders` and its VAE (`{vae}`) into
`models/vae`, and open `{workflow}`: shift {shift:g}, euler, simple, {count} steps, cfg 1.
`workflow_api.json` is the same for the HTTP API.
"""
_COMFYUI_LORA: Final = """\
## ComfyUI

Put `{file}` into `ComfyUI/models/loras`, the teacher into `models/diffusion_models` and its text
encoder and VAE as usual, and open `{workflow}`: shift {shift:g}, euler, simple, {count} steps,
cfg 1. `workflow_api.json` is the same for the HTTP API.
"""
_DIFFUSERS_LORA: Final = """\
## diffusers

```python
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

pipe = WanPipeline.from_pretrained("{teacher}", torch_dtype=torch.bfloat16)
pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
    "THIS_FOLDER", subfolder="scheduler"
)
pipe.load_lora_weights("THIS_FOLDER", weight_name="{file}")
video = pipe(
    "a prompt",
    height={height},
    width={width},
    num_frames={num_frames},
    num_inference_steps={count},
    guidance_scale=1.0,
).frames[0]
```

diffusers applies the linear layers and their biases, and skips the changes of norms, modulation and
the patch embedding that the file has too (`.diff`, `.diff_m`).
"""
_STORED: Final = {
    "diffusers": "{dtype}; layers that diffusers keeps in float32 are float32",
    "wan": "{dtype}, original names",
    "comfyui": "{dtype}, original names behind ComfyUI's prefix",
    "lora": "{dtype} adapters, portable names",
}
_METRICS_ROWS: Final = 40


def model_card(spec: ExportSpec, losses: Losses | None) -> str:
    """The card as Markdown, with the front matter of a hub page."""
    about = spec.source.about
    values = _values(spec, about)
    sections = [_HEAD.format(**values), _USAGE[spec.format](spec, values)]
    sections += [_TABLE.format(**values), *_lost(losses), *_metrics(spec.source.metrics)]
    return "".join([*sections, _FOOT])


def _values(spec: ExportSpec, about: Manifest) -> dict[str, Any]:
    schedule = about.schedule.to_dict()
    name = str(about.method["name"])
    stored = _STORED[spec.format].format(dtype=spec.dtype)
    if spec.dtype == "fp8":
        stored = f"8-bit floats with scales in attention and feed-forward, the rest bf16 ({stored})"
    return {
        "kind": _kind(spec),
        "trained": _trained(spec.source),
        "method": name,
        "method_upper": name.upper(),
        "options": ", ".join(f"{k} {v}" for k, v in about.method["options"].items()),
        "count": len(about.schedule),
        "teacher": about.teacher,
        "torch_dtype": TORCH_NAMES.get(spec.dtype, "bfloat16"),
        "height": about.video.height,
        "width": about.video.width,
        "num_frames": about.video.num_frames,
        "fps": about.video.fps,
        "timesteps": ", ".join(map(str, schedule["timesteps"])),
        "base": ", ".join(map(str, schedule["base"])),
        "shift": about.schedule.shift,
        "guidance_scale": about.guidance_scale,
        "prompts": spec.source.prompts or "prompts; see the job that made it",
        "step": about.step,
        "ema": ", moving average of the weights" if about.ema else "",
        "stored": stored,
    }


def _kind(spec: ExportSpec) -> str:
    trained = ", trained as a LoRA" if spec.source.lora is not None else ""
    if spec.format == "lora":
        return f"{trained}, as a LoRA for its teacher"
    return f"{trained} and merged into its teacher" if trained else ""


def _trained(source: Source) -> str:
    lora = source.lora
    if lora is None:
        return "all weights" if source.job_file is not None else "see the job that made it"
    return (
        f"adapters (LoRA) of rank {lora.rank}, alpha {lora.scale * lora.rank:g}, on "
        f"{', '.join(lora.targets)}; all else is the teacher's"
    )


def _lightx2v(spec: ExportSpec, values: Mapping[str, Any]) -> str:
    job = spec.out.resolve() / LIGHTX2V_FILE
    return _LIGHTX2V.format(**values, job=job, file=LIGHTX2V_FILE)


def _comfyui(spec: ExportSpec, values: Mapping[str, Any]) -> str:
    return _COMFYUI.format(
        **values,
        weights=f"{comfyui.stem(spec)}.safetensors",
        text_encoder=TEXT_ENCODER,
        vae=VAE,
        workflow=WORKFLOW_FILE,
    )


def _lora(spec: ExportSpec, values: Mapping[str, Any]) -> str:
    comfyui = _COMFYUI_LORA.format(**values, file=LORA_FILE, workflow=WORKFLOW_FILE)
    diffusers = _DIFFUSERS_LORA.format(**values, file=LORA_FILE)
    return "\n".join([diffusers, comfyui, _lightx2v(spec, values)])


_USAGE: Final[Mapping[str, Callable[[ExportSpec, Mapping[str, Any]], str]]] = {
    "diffusers": lambda spec, values: _DIFFUSERS.format(**values),
    "wan": _lightx2v,
    "comfyui": _comfyui,
    "lora": _lora,
}


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
