"""lora for families whose stock pipeline reads one naming: ``unet.<layer>.lora_A.weight``.

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
from lightx2v_sgmd.files.lora_folder import DIFFUSERS_FILE
from lightx2v_sgmd.files.tensors.dtypes import FILE_NAMES, OPTIONS
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata, schedule_of
from lightx2v_sgmd.files.tensors.safetensors_writer import Part, TensorFile
from lightx2v_sgmd.networks.adapters import METADATA_KEY
from lightx2v_sgmd.system.errors import UserError
from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.diffusers import scheduler_problems, write_scheduler
from weights.formats.layout import stored_finite
from weights.formats.lora_losses import (
    ROLLOUT,
    STUDENT,
    change_of,
    forward_error,
    probe_of,
    run_student,
)
from weights.io.adapters import Factors, StoredAdapters, factorize
from weights.io.heap import HeapTrimmer
from weights.io.lora_names import DIFFUSERS, LayerFactors, settings_of
from weights.io.network import SLACK
from weights.io.probe import fits_in_memory
from weights.io.quantize import norm, relative_error
from weights.io.source import teacher_tensors
from weights.io.tensors import MergedTensors, Tensors

_DOWN: Final = "lora_A.weight"
_UP: Final = "lora_B.weight"
_USAGE: Final = """\
## diffusers

```python
import torch
from diffusers import {scheduler}, {pipeline}

pipe = {pipeline}.from_pretrained("{teacher}", torch_dtype=torch.{torch_dtype})
pipe.scheduler = {scheduler}.from_pretrained("THIS_FOLDER", subfolder="scheduler")
pipe.load_lora_weights("THIS_FOLDER")
image = pipe(
    prompt="a prompt",
    height={height},
    width={width},
    num_inference_steps={count},
    guidance_scale=1.0,
).images[0]
```

## lightx2v-sgmd

```
lightx2v-sgmd generate --weights "{teacher}" --lora THIS_FOLDER --prompt "a prompt" --out image.png
```
"""


def applies(model: Model) -> bool:
    """True for a model whose adapters have this one naming."""
    return "wan" not in model.formats


def check(spec: ExportSpec) -> None:
    """Refuses options that are for other families, and steps that no stock scheduler takes."""
    family = spec.source.model.family
    if spec.names != DIFFUSERS.name:
        raise UserError(f"names: {spec.names!r} is not for {family}; leave the option out")
    if spec.only is not None:
        raise UserError(f"only: {spec.only!r} is not for {family}; leave the option out")
    spec.source.model.scheduler_config(spec.source.schedule)


def passes(spec: ExportSpec) -> tuple[int, int]:
    """How often the weights of a network are read to measure what is lost, and to verify it."""
    each = 1 if fits_in_memory(spec.source.model) else 1 + len(spec.source.schedule)
    return 1 + 2 * each, 2


def write(spec: ExportSpec, folder: Path, default_rank: int, advance: Advance) -> Losses:
    """Writes the file and the scheduler; returns what was lost."""
    source = spec.source
    teacher = teacher_tensors(source)
    pairs: dict[str, LayerFactors] = {}
    tensors: dict[str, Tensor] = {}
    trimmer = HeapTrimmer()
    for name, shape in source.tensors.shapes.items():
        advance(1)
        factors = _factors(spec, teacher, name, shape, default_rank)
        if factors is not None:
            layer = name.removesuffix(".weight")
            down, up = _stored(spec, name, factors, shape)
            pairs[layer] = LayerFactors(factors.down, factors.up, 1.0, None)
            stored = f"{source.model.pipeline.folder}.{layer}"
            tensors |= {f"{stored}.{_DOWN}": down, f"{stored}.{_UP}": up}
        trimmer.trim()
    parts = [Part(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    metadata = schedule_metadata(source.schedule) | _settings(source.model, pairs)
    file = TensorFile(folder / DIFFUSERS_FILE, parts, metadata)
    try:
        for name, tensor in tensors.items():
            file.write(name, tensor)
    finally:
        file.close()
    write_scheduler(folder, source.model, source.schedule)
    return _losses(spec, teacher, folder, advance)


def problems(spec: ExportSpec, folder: Path, losses: Losses, advance: Advance) -> list[str]:
    """Lists what the program would read that differs from the source."""
    source = spec.source
    found = scheduler_problems(folder, source.model, source.schedule)
    try:
        adapters = StoredAdapters.checked(folder / DIFFUSERS_FILE, source.tensors.shapes)
    except UserError as error:
        return [*found, str(error)]
    if schedule_of(adapters.header.metadata) != source.schedule:
        found.append("the weights carry another schedule than the source")
    wanted = FILE_NAMES[OPTIONS[spec.dtype]]
    for name, info in adapters.header.tensors.items():
        if info.dtype != wanted:
            found.append(f"{name} is {info.dtype}, not {wanted}")
    teacher = teacher_tensors(source)
    now, _ = _layers(spec, teacher, adapters, advance)
    for name, values in losses.layers.items():
        off = now[name]["relative_error"] if name in now else 1.0
        if off > values["relative_error"] * SLACK + 1e-7:
            reported = f"{values['relative_error']:.2%} is reported"
            found.append(f"{name} is off by {off:.2%}, but {reported}")
    forward = forward_error(spec, teacher, adapters, advance)
    if forward > losses.forward_error * SLACK + 1e-7:
        reported = f"{losses.forward_error:.2%} is reported"
        found.append(f"a forward pass is off by {forward:.2%}, but {reported}")
    return found


def usage(spec: ExportSpec, values: Mapping[str, Any]) -> str:
    """The model card's sections on diffusers and on our engine."""
    model = spec.source.model
    scheduler = model.scheduler_config(spec.source.schedule)["_class_name"]
    return _USAGE.format(**values, pipeline=model.pipeline.name, scheduler=scheduler)


def nbytes(spec: ExportSpec, default_rank: int) -> int:
    """The approximate size of the file, in bytes."""
    adapters, size = spec.source.adapters, OPTIONS[spec.dtype].itemsize
    if adapters is not None:
        return size * sum(prod(info.shape) for info in adapters.header.tensors.values())
    total = 0
    for name, shape in spec.source.tensors.shapes.items():
        if has_factors(name, shape):
            sides = shape[0], prod(shape[1:])
            total += sum(sides) * min(*sides, *([] if spec.energy else [spec.rank or default_rank]))
    return size * total


def has_factors(name: str, shape: tuple[int, ...]) -> bool:
    """True if a weight is that of a linear layer or a convolution."""
    return name.endswith(".weight") and len(shape) in (2, 4)


def _factors(
    spec: ExportSpec, teacher: Tensors, name: str, shape: tuple[int, ...], default_rank: int
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
    rank = (spec.rank or default_rank) if spec.energy is None else None
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


def _layers(
    spec: ExportSpec,
    teacher: Tensors,
    adapters: StoredAdapters,
    advance: Advance = lambda n: None,
) -> tuple[dict[str, dict[str, float]], float]:
    """Each layer's losses, and the share of all that training changed which the file holds."""
    layers: dict[str, dict[str, float]] = {}
    lost = changed = 0.0
    for name, shape in spec.source.tensors.shapes.items():
        advance(1)
        exact, got = change_of(spec, teacher, name), adapters.delta(name, shape)
        off, size = norm(exact if got is None else got - exact), norm(exact)
        lost, changed = lost + off**2, changed + size**2
        if has_factors(name, shape) and (size or off):
            layer = name.removesuffix(".weight")
            rank = adapters.file.rank(layer) if layer in adapters.file.layers else 0
            error = off / size if size else 0.0
            layers[name] = {"rank": rank, "energy": 1 - error**2, "relative_error": error}
    return layers, 1 - lost / changed if changed else 1.0


def _losses(spec: ExportSpec, teacher: Tensors, folder: Path, advance: Advance) -> Losses:
    """The losses of the written file, measured on the file."""
    source = spec.source
    adapters = StoredAdapters.checked(folder / DIFFUSERS_FILE, source.tensors.shapes)
    layers, energy = _layers(spec, teacher, adapters)
    student, exact = run_student(spec, source.tensors, advance)
    spec.probed[STUDENT] = student
    base = probe_of(spec, teacher, advance).forward()
    merged, whole = run_student(spec, MergedTensors(teacher, adapters), advance)
    rollout_error = relative_error(whole, exact)
    return Losses(
        "lora",
        relative_error(merged, student),
        layers,
        {
            "energy": energy,
            "change_lost": norm(merged - student) / (norm(student - base) or 1.0),
            "steps": len(source.schedule),
            ROLLOUT: dict.fromkeys(("lightx2v-sgmd", "diffusers"), rollout_error),
        },
    )
