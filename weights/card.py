"""The model card of an export."""

from __future__ import annotations

from lightx2v_sgmd.manifest import Manifest

_CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-video
tags: [text-to-video, distillation, few-step, {method}, lightx2v-sgmd]
---

# A {count}-step text-to-video student

Distilled from `{teacher}` by {method_upper} with lightx2v-sgmd. It makes a video in {count} network
evaluations, without guidance.

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

or, with the fastest attention kernel of the machine:

```
lightx2v-sgmd generate --weights THIS_FOLDER --prompt "a prompt" --out video.mp4
```

| | |
|---|---|
| timesteps | {timesteps} (shift {shift:g} of {base}), Euler |
| guidance when it is run | none (`guidance_scale=1.0`) |
| teacher's guidance in training | {guidance_scale:g} |
| trained for | {height}x{width}, {num_frames} frames at {fps:g} per second |
| iterations | {step}{ema} |
| method | {method} {options} |
| stored as | {dtype} (layers that diffusers keeps in float32 are float32) |

Other timesteps, or guidance, give blurred or noisy videos: the schedule is part of the weights. It
stands in `scheduler/`, in `lightx2v_sgmd.json` and in the metadata of the safetensors files.
`job.yaml` is the training job. The teacher's licence applies to this student too.
"""
_TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def model_card(manifest: Manifest) -> str:
    """The card as Markdown, with the front matter of a hub page."""
    schedule = manifest.schedule.to_dict()
    name = str(manifest.method["name"])
    return _CARD.format(
        method=name,
        method_upper=name.upper(),
        options=", ".join(f"{k} {v}" for k, v in manifest.method["options"].items()),
        count=len(manifest.schedule),
        teacher=manifest.teacher,
        torch_dtype=_TORCH_NAMES[manifest.dtype],
        height=manifest.video.height,
        width=manifest.video.width,
        num_frames=manifest.video.num_frames,
        fps=manifest.video.fps,
        timesteps=", ".join(map(str, schedule["timesteps"])),
        base=", ".join(map(str, schedule["base"])),
        shift=manifest.schedule.shift,
        guidance_scale=manifest.guidance_scale,
        step=manifest.step,
        ema=", moving average of the weights" if manifest.ema else "",
        dtype=manifest.dtype,
    )
