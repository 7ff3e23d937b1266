"""The model card's words on how each program takes exported adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from weights.export_spec import ExportSpec
from weights.formats.comfyui import base_weights, image_usage
from weights.formats.comfyui_workflow import WORKFLOW_FILE
from weights.formats.diffusers import stock_words
from weights.formats.lora_losses import linear_alone
from weights.formats.programs import COMFYUI, section
from weights.formats.wan import lightx2v_usage

_DIFFUSERS: Final = """\
## diffusers

```python
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, {pipeline}{image_import}

pipe = {pipeline}.from_pretrained("{start}", torch_dtype=torch.bfloat16)
pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
    "THIS_FOLDER", subfolder="scheduler"
)
{loading}
video = pipe(
{image_argument}    prompt="a prompt",
    height={height},
    width={width},
    num_frames={num_frames},
    num_inference_steps={count},
    guidance_scale=1.0,
).frames[0]
```
"""
_LOADING: Final = 'pipe.load_lora_weights("THIS_FOLDER", weight_name="{file}")'
_LOADING_PAIR: Final = """\
pipe.load_lora_weights("THIS_FOLDER/{folder}", weight_name="{file}")
pipe.load_lora_weights(
    "THIS_FOLDER/{folder_2}",
    weight_name="{file_2}",
    load_into_transformer_2=True,
)"""
_WHOLE: Final = """
diffusers applies the linear layers and their biases, and skips the changes of norms, modulation and
the patch embedding that the file has too (`.diff`, `.diff_m`). Run this once, after
`load_lora_weights`, to add them:

```python
from safetensors.torch import load_file

names = {{"self_attn": "attn1", "cross_attn": "attn2", "norm3": "norm2", "head.": ""}}
{more_names}weights = dict(pipe.transformer.named_parameters())
for key, change in load_file("THIS_FOLDER/{file}").items():
    layer, _, kind = key.removeprefix("diffusion_model.").rpartition(".")
    layer = layer.replace("modulation", "scale_shift_table")
    for theirs, ours in names.items():
        layer = layer.replace(theirs, ours)
    end = {{"diff": "", "diff_b": ".bias"}}.get(kind) if "table" in layer else None
    if "norm" in layer or "patch" in layer:
        end = {{"diff": ".weight", "diff_b": ".bias"}}.get(kind)
    if end is not None:
        weights[layer + end].data += change.to(weights[layer + end])
```
"""
_WHOLE_PAIR: Final = """
Run it again with `pipe.transformer_2` and `{file_2}`.
"""
_IMAGE_NAMES: Final = """\
names |= {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_add_k_proj": "norm_added_k"}
for norm, i in (("norm1", 0), ("norm2", 4)):
    names[f"img_emb.proj.{i}"] = f"condition_embedder.image_embedder.{norm}"
"""
_COMFYUI: Final = """\
## ComfyUI

Copy `{file}` to `ComfyUI/models/loras`, `{start}` to
`models/diffusion_models/{base_weights}`, and its text encoder and VAE as usual. Then open
`{workflow}`, which names these files: shift {shift:g}, euler, simple, {count} steps, cfg 1.
`workflow_api.json` is the same for the HTTP API. ComfyUI skips a LoRA for a network of another size
with no more than a warning in its log.
{image}"""
_COMFYUI_HELD_FRAME: Final = """\
## ComfyUI

Copy `{file}` to `ComfyUI/models/loras`, and open ComfyUI's own workflow for `{start}`;
this folder has none. Put `LoraLoaderModelOnly` behind the node that loads the network; set shift
{shift:g}, euler, simple, {count} steps and cfg 1.
"""
# Its ModelPatcher "skips random weights in non leaf modules" (0.3.64 and 0.8.0): modulation is one.
_COMFYUI_MODULATION: Final = """\
ComfyUI applies all of the file but the changes of modulation, which it skips without a warning.
"""
_LIGHTX2V_DYNAMIC: Final = """
LightX2V's `lora_dynamic_apply` skips what this file changes outside the blocks, and modulation;
for that, export with `--only blocks`.
"""
_PEFT: Final = """\
## PEFT

```python
from peft import PeftModel

pipe.transformer = PeftModel.from_pretrained(pipe.transformer, "THIS_FOLDER")
```

`adapter_config.json` and `adapter_model.safetensors` are for PEFT: the linear layers{biases}.
"""
_PEFT_PAIR: Final = """\
## PEFT

```python
from peft import PeftModel

pipe.transformer = PeftModel.from_pretrained(pipe.transformer, "THIS_FOLDER/{folder}")
pipe.transformer_2 = PeftModel.from_pretrained(pipe.transformer_2, "THIS_FOLDER/{folder_2}")
```

`adapter_config.json` and `adapter_model.safetensors` are for PEFT: the linear layers{biases}.
"""
_ENGINE: Final = """\
## lightx2v-sgmd

```
lightx2v-sgmd generate --weights "{start}"{fine_tune_options} --lora THIS_FOLDER \\
    --prompt "a prompt"{image_option} --out video.mp4
```
"""
_ENGINE_PAIR: Final = """\
## lightx2v-sgmd

```
lightx2v-sgmd generate --weights "{start}"{fine_tune_options} --lora THIS_FOLDER/{folder} \\
    --lora THIS_FOLDER/{folder_2} --prompt "a prompt"{image_option} --out video.mp4
```
"""
_MUSUBI: Final = """\
## musubi-tuner

```
python wan_generate_video.py --lora_weight THIS_FOLDER/{file} \\
    --sample_solver vanilla --flow_shift {shift:g} --infer_steps {count} --guidance_scale 1 ...
```

The file has the changes of linear layers alone.
"""
_LIGHTX2V_TRAIN: Final = """\
## LightX2V's trainer

Give this folder as `lora_config: {{path: THIS_FOLDER}}` in the `infer` section. The layers have the
names of the trainer's own network, so other programs do not take the file.
"""


def usage_of(spec: ExportSpec, values: Mapping[str, Any], files: Sequence[str]) -> str:
    """The sections of a card on the programs that take adapters.

    Args:
        spec: The export; its names say for which programs it is.
        values: The card's values by name.
        files: The path in the export of the file of adapters, or of each expert's.
    """
    file = files[0]
    if spec.names == "musubi":
        return _MUSUBI.format(**values, file=file)
    if spec.names == "lightx2v_train":
        return _LIGHTX2V_TRAIN.format()
    biases = "" if linear_alone(spec) else " and their biases"
    pair = _pair_values(files)
    peft = (_PEFT_PAIR if pair else _PEFT).format(biases=biases, **pair)
    if spec.names == "peft":
        return peft
    loading = _LOADING_PAIR.format(**pair) if pair else _LOADING.format(file=file)
    model = spec.source.model
    words = stock_words(model)
    diffusers = _DIFFUSERS.format(**values, **words, loading=loading)
    if spec.names == "diffusers":
        return diffusers
    if not linear_alone(spec):
        of_image = model.transformer_config.get("image_dim") is not None
        diffusers += _WHOLE.format(file=file, more_names=_IMAGE_NAMES if of_image else "")
        if pair:
            diffusers += _WHOLE_PAIR.format(file_2=files[1])
    dynamic = "" if linear_alone(spec) else _LIGHTX2V_DYNAMIC
    lightx2v = lightx2v_usage(spec, values, dynamic)
    more = {
        "file": "` and `".join(files),
        "base_weights": "` and `".join(base_weights(each) for each in spec.experts),
        "workflow": WORKFLOW_FILE,
    }
    if model.takes_image == "optionally":
        comfyui = _COMFYUI_HELD_FRAME.format(**values, **more)
    else:
        comfyui = _COMFYUI.format(**values, **more, image=image_usage(model))
    if not linear_alone(spec):
        comfyui += _COMFYUI_MODULATION
    comfyui = section(COMFYUI, model.transformer_config, comfyui)
    engine = (_ENGINE_PAIR if pair else _ENGINE).format(**pair, **values, **words)
    return "\n".join([diffusers, engine, comfyui, lightx2v, peft])


def _pair_values(files: Sequence[str]) -> dict[str, str]:
    """The folders and names of two experts' files; empty for one file."""
    if len(files) == 1:
        return {}
    (folder, file), (folder_2, file_2) = (path.split("/") for path in files)
    return {"folder": folder, "file": file, "folder_2": folder_2, "file_2": file_2}
