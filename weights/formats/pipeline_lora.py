"""lora for families whose stock pipeline reads one naming: ``<network>.<layer>.lora_A.weight``.

Linear layers and convolutions have factors, as PEFT has them: a convolution's are a convolution to
``r`` channels and one of 1x1 from them. Norms and biases cannot be said in such a file; the report
states what that loses.

r rank
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.files.tensors.dtypes import OPTIONS
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.networks.adapters import METADATA_KEY
from lightx2v_sgmd.system.errors import UserError
from weights.export_spec import Advance, ExportSpec
from weights.formats.layout import stored_finite
from weights.formats.lora import DEFAULT_RANK, LoraFormat, file_name, write_file
from weights.formats.lora_losses import change_of, has_factors
from weights.io.adapters import Factors, factorize
from weights.io.heap import HeapTrimmer
from weights.io.lora_names import DIFFUSERS, LayerFactors, settings_of
from weights.io.model_spec import model_spec
from weights.io.tensors import Tensors

_DOWN: Final = "lora_A.weight"
_UP: Final = "lora_B.weight"
_USAGE: Final = """\
## diffusers

```python
import torch
from diffusers import {scheduler}, {pipeline}

pipe = {pipeline}.from_pretrained("{start}", torch_dtype=torch.{torch_dtype})
pipe.scheduler = {scheduler}.from_pretrained("THIS_FOLDER", subfolder="scheduler")
pipe.load_lora_weights("THIS_FOLDER")
{call}
```

## lightx2v-sgmd

```
lightx2v-sgmd generate --weights "{start}"{fine_tune_options} --lora THIS_FOLDER \\
    --prompt "a prompt" --out {file}
```
"""
_IMAGE: Final = """\
image = pipe(
    prompt="a prompt",
    height={height},
    width={width},
    num_inference_steps={count},
    guidance_scale=1.0,
).images[0]"""
_VIDEO: Final = """\
video = pipe(
    prompt="a prompt",
    height={height},
    width={width},
    num_frames={num_frames},
    num_inference_steps={count},
    guidance_scale=1.0,
).frames[0]"""


class PipelineLoraFormat(LoraFormat):
    """Adapters for a stock pipeline of diffusers, whose names no other program has."""

    usual_names = DIFFUSERS.name

    def check(self, spec: ExportSpec) -> None:
        """Refuses options that are for other families, and steps of no stock scheduler."""
        self.check_options(spec)
        family = spec.source.model.family
        if spec.names != DIFFUSERS.name:
            raise UserError(f"names: {spec.names!r} is not for {family}; leave the option out")
        if spec.only is not None:
            raise UserError(f"only: {spec.only!r} is not for {family}; leave the option out")
        spec.source.model.scheduler_config(spec.source.schedule)

    def nbytes(self, spec: ExportSpec) -> int:
        """The approximate size of the file, in bytes."""
        adapters, size = spec.source.adapters, OPTIONS[spec.dtype].itemsize
        if adapters is not None:
            return size * sum(prod(info.shape) for info in adapters.header.tensors.values())
        total = 0
        for name, shape in spec.source.tensors.shapes.items():
            if has_factors(name, shape):
                sides = shape[0], prod(shape[1:])
                rank = min(*sides, *([] if spec.energy else [spec.rank or DEFAULT_RANK]))
                total += sum(sides) * rank
        return size * total

    def write_adapters(
        self, spec: ExportSpec, teacher: Tensors, folder: Path, advance: Advance
    ) -> None:
        """Writes the one file; see ``LoraFormat.write_adapters``."""
        source = spec.source
        pairs: dict[str, LayerFactors] = {}
        tensors: dict[str, Tensor] = {}
        trimmer = HeapTrimmer()
        for name, shape in source.tensors.shapes.items():
            advance(1)
            factors = _factors(spec, teacher, name, shape)
            if factors is not None:
                layer = name.removesuffix(".weight")
                down, up = _stored(spec, name, factors, shape)
                pairs[layer] = LayerFactors(factors.down, factors.up, 1.0, None)
                stored = f"{source.model.pipeline.folder}.{layer}"
                tensors |= {f"{stored}.{_DOWN}": down, f"{stored}.{_UP}": up}
            trimmer.trim()
        metadata = schedule_metadata(source.schedule) | model_spec(spec)
        metadata |= _settings(source.model, pairs)
        write_file(folder / file_name(spec), tensors, metadata)

    def usage(self, spec: ExportSpec, values: Mapping[str, Any]) -> str:
        """The model card's sections on diffusers and on our engine."""
        model = spec.source.model
        scheduler = model.scheduler_config(spec.source.schedule)["_class_name"]
        images = model.size_rules.images
        return _USAGE.format(
            **values,
            pipeline=model.pipeline.name,
            scheduler=scheduler,
            call=(_IMAGE if images else _VIDEO).format(**values),
            file="image.png" if images else "video.mp4",
        )


def applies(model: Model) -> bool:
    """True for a model whose adapters have this one naming."""
    return not model.pipeline.portable_loras


def _factors(
    spec: ExportSpec, teacher: Tensors, name: str, shape: tuple[int, ...]
) -> Factors | None:
    """The factors of a weight's change; None if it does not change, or has none."""
    adapters = spec.source.adapters
    if not has_factors(name, shape):
        return None
    trained = None if adapters is None else adapters.factors(name)
    if trained is not None:
        return trained
    delta = change_of(spec, teacher, name).flatten(1)
    if not delta.any():
        return None
    rank = (spec.rank or DEFAULT_RANK) if spec.energy is None else None
    return factorize(delta, name, rank, spec.energy)


def _stored(
    spec: ExportSpec, name: str, factors: Factors, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The down and the up factor in the file's precision; both are convolutions for a kernel."""
    dtype, where = OPTIONS[spec.dtype], spec.source.tensors.where(name)
    down = factors.down.reshape(-1, *shape[1:])
    up = (factors.scale * factors.up.float()).reshape(shape[0], -1, *[1] * (len(shape) - 2))
    stored = [tensor.to(dtype).contiguous() for tensor in (down, up)]
    first, second = (stored_finite(tensor, name, where, spec.dtype) for tensor in stored)
    return first, second


def _settings(model: Model, pairs: Mapping[str, LayerFactors]) -> dict[str, str]:
    """The entry of the header that tells diffusers ranks, alphas and layers."""
    if not pairs:
        return {}
    start = f"{model.pipeline.folder}."
    told = {f"{start}{key}": value for key, value in settings_of(pairs, DIFFUSERS).items()}
    return {METADATA_KEY: json.dumps(told, sort_keys=True)}
