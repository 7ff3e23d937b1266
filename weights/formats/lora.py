"""lora: adapters for the teacher under portable names: for LightX2V, ComfyUI and diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.wan import WanModel
from lightx2v_sgmd.files.dtypes import FILE_NAMES, OPTIONS
from lightx2v_sgmd.files.safetensors_files import (
    Header,
    read_headers,
    schedule_metadata,
    schedule_of,
)
from lightx2v_sgmd.files.safetensors_writer import Part, TensorFile
from lightx2v_sgmd.system.errors import UserError
from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.base import Format
from weights.formats.comfyui import base_weights, check_even, stem
from weights.formats.comfyui_workflow import WORKFLOW_API_FILE, WORKFLOW_FILE, to_ui, workflow
from weights.formats.diffusers import scheduler_problems, write_scheduler
from weights.formats.programs import COMFYUI, LIGHTX2V, section
from weights.formats.wan import LIGHTX2V_FILE, lightx2v_job, lightx2v_usage, whole_steps
from weights.io.adapters import (
    Factors,
    PortableAdapters,
    difference_names,
    diffusers_takes,
    factor_names,
    factorize,
    is_matrix,
)
from weights.io.heap import HeapTrimmer
from weights.io.json_files import json_problems, write_json
from weights.io.network import SLACK
from weights.io.probe import probe
from weights.io.quantize import norm, relative_error
from weights.io.source import model_tensors, teacher_tensors
from weights.io.tensors import MergedTensors, Tensors, network_shapes

LORA_FILE: Final = "pytorch_lora_weights.safetensors"
DEFAULT_RANK: Final = 64


_DIFFUSERS_USAGE: Final = """\
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
_COMFYUI_USAGE: Final = """\
## ComfyUI

Copy `{file}` to `ComfyUI/models/loras/{named}`, the teacher to
`models/diffusion_models/{base_weights}`, and its text encoder and VAE as usual. Then open
`{workflow}`, which names these files: shift {shift:g}, euler, simple, {count} steps, cfg 1.
`workflow_api.json` is the same for the HTTP API. ComfyUI skips a LoRA for a network of another size
with no more than a warning in its log.
"""


class LoraFormat(Format):
    """Adapters under portable names, with configurations for the three programs."""

    name = "lora"
    dtypes = ("bf16", "fp16", "fp32")
    stored_as = "{dtype} adapters, portable names"
    library = "diffusers"
    programs = (COMFYUI, LIGHTX2V)
    holds_adapters = True

    def check(self, spec: ExportSpec) -> None:
        """Refuses what the program cannot express; see ``Format.check``."""
        if spec.rank is not None and spec.energy is not None:
            raise UserError("rank, energy: give only one of the two")
        if spec.source.adapters is not None and (spec.rank or spec.energy):
            raise UserError(
                "rank, energy: the source consists of adapters already, which are exported as they "
                "are; leave the option out"
            )
        spec.source.schedule.diffusers_config()
        check_even(spec.source.schedule)
        whole_steps(spec.source.schedule)

    def nbytes(self, spec: ExportSpec) -> int:
        """The approximate size of the export on disk, in bytes."""
        total, adapters = 0, spec.source.adapters
        if adapters is not None:
            infos = adapters.header.tensors.values()
            return sum(torch.Size(i.shape).numel() for i in infos) * OPTIONS[spec.dtype].itemsize
        for name, shape in spec.source.tensors.shapes.items():
            numel = torch.Size(shape).numel()
            if is_matrix(name, shape):
                rank = min(*shape) if spec.energy else min(*shape, spec.rank or DEFAULT_RANK)
                numel = sum(shape) * rank
            total += numel * OPTIONS[spec.dtype].itemsize
        return total

    def write(self, spec: ExportSpec, folder: Path, advance: Advance) -> Losses:
        """Writes weights and configurations into an empty folder; returns what was lost."""
        teacher = teacher_tensors(spec.source)
        pieces: dict[str, Tensor] = {}
        ranks: dict[str, int] = {}
        trimmer = HeapTrimmer()
        for name in spec.source.tensors.shapes:
            written = _pieces(spec, teacher, name)
            pieces |= written.tensors
            if written.rank:
                ranks[name] = written.rank
            trimmer.trim()
            advance(1)
        _write_file(folder / LORA_FILE, pieces, spec)
        write_scheduler(folder, spec.source.schedule)
        for path, content in _side_files(spec).items():
            write_json(folder / path, content)
        return _losses(spec, teacher, folder, ranks)

    def problems(
        self, spec: ExportSpec, folder: Path, losses: Losses | None, advance: Advance
    ) -> list[str]:
        """Lists what the program would read that differs from the source."""
        problems = scheduler_problems(folder, spec.source.schedule)
        for path, content in _side_files(spec).items():
            problems += json_problems(folder / path, content)
        teacher = teacher_tensors(spec.source)
        try:
            header = read_headers([folder / LORA_FILE])
            PortableAdapters.checked(header, spec.source.tensors.shapes, LORA_FILE)
        except UserError as error:
            return [*problems, str(error)]
        if schedule_of(header.metadata) != spec.source.schedule:
            problems.append("the weights carry another schedule than the source")
        expected_type = FILE_NAMES[OPTIONS[spec.dtype]]
        for name, info in header.tensors.items():
            if info.dtype != expected_type and not name.endswith(".alpha"):
                problems.append(f"{name} is {info.dtype}, not {expected_type}")
        assert losses is not None, "adapters always come with a report"
        now = _losses(spec, teacher, folder, {}, advance)
        for name, values in losses.layers.items():
            off = now.layers[name]["relative_error"]
            if off > values["relative_error"] * SLACK + 1e-7:
                problems.append(
                    f"{name} is off by {off:.2%}, but {values['relative_error']:.2%} is reported"
                )
        if now.forward_error > losses.forward_error * SLACK + 1e-7:
            problems.append(
                f"a forward pass is off by {now.forward_error:.2%}, but "
                f"{losses.forward_error:.2%} is reported"
            )
        return problems

    def usage(self, spec: ExportSpec, values: Mapping[str, Any]) -> str:
        """The model card's sections on diffusers, ComfyUI and LightX2V."""
        diffusers = _DIFFUSERS_USAGE.format(**values, file=LORA_FILE)
        names = {"named": comfyui_name(spec), "base_weights": base_weights(spec)}
        comfyui = _COMFYUI_USAGE.format(**values, **names, file=LORA_FILE, workflow=WORKFLOW_FILE)
        comfyui = section(COMFYUI, spec.source.model.transformer_config, comfyui)
        return "\n".join([diffusers, comfyui, lightx2v_usage(spec, values)])

    def weight_files(self, folder: Path) -> list[Path]:
        """The one file of adapters."""
        return [folder / LORA_FILE]

    def open_tensors(
        self, folder: Path, header: Header, model: WanModel
    ) -> tuple[Tensors, PortableAdapters]:
        """The teacher's weights with the adapters merged into them, and the adapters."""
        adapters = PortableAdapters.checked(header, network_shapes(model), str(folder))
        return MergedTensors(model_tensors(model), adapters), adapters


def comfyui_name(spec: ExportSpec) -> str:
    """The file's name in ComfyUI's folder of LoRAs, where two must not have one name."""
    return f"{stem(spec)}_lora.safetensors"


@dataclass(frozen=True)
class _Pieces:
    tensors: dict[str, Tensor]
    rank: int = 0


def _pieces(spec: ExportSpec, teacher: Tensors, name: str) -> _Pieces:
    """The tensors that the file holds for one weight."""
    dtype = OPTIONS[spec.dtype]
    shape = spec.source.tensors.shapes[name]
    adapters = spec.source.adapters
    if not is_matrix(name, shape):
        delta = _delta(spec, teacher, name) if adapters is None else adapters.delta(name, shape)
        if delta is None or not delta.any():
            return _Pieces({})
        stored = _finite(spec, name, delta.to(dtype))
        return _Pieces(dict.fromkeys(difference_names(name), stored))
    if adapters is None:
        rank = (spec.rank or DEFAULT_RANK) if spec.energy is None else None
        factors = factorize(_delta(spec, teacher, name), name, rank, spec.energy)
    else:
        trained = adapters.factors(name)
        if trained is None and not _wanted_as_zero(spec, name):
            return _Pieces({})
        factors = trained or Factors(torch.zeros(shape[0], 1), torch.zeros(1, shape[1]))
    up, down, alpha = factor_names(name)
    above = factors.up if alpha is not None or factors.scale == 1 else factors.up * factors.scale
    tensors = {
        up: _finite(spec, name, above.to(dtype)),
        down: _finite(spec, name, factors.down.to(dtype)),
    }
    if alpha is not None:
        tensors[alpha] = torch.tensor(factors.scale * factors.rank)
    return _Pieces(tensors, factors.rank)


def _wanted_as_zero(spec: ExportSpec, name: str) -> bool:
    """True if a layer needs zero adapters: diffusers wants all outside blocks, or none."""
    adapters = spec.source.adapters
    assert adapters is not None, "extracted adapters are of all layers"
    outside = [n for n in spec.source.tensors.shapes if not n.startswith("blocks.")]
    return name in outside and any(adapters.factors(n) is not None for n in outside)


def _delta(spec: ExportSpec, teacher: Tensors, name: str) -> Tensor:
    """The change of a weight by training, float32; exact for adapters, with no rounded sum."""
    if spec.source.adapters is not None:
        shape = spec.source.tensors.shapes[name]
        delta = spec.source.adapters.delta(name, shape)
        return torch.zeros(shape) if delta is None else delta
    return spec.source.tensors.read(name).float() - teacher.read(name).float()


def _finite(spec: ExportSpec, name: str, tensor: Tensor) -> Tensor:
    if not tensor.isfinite().all():
        raise UserError(
            f"{spec.source.tensors.where(name)}: {name} has values that are not finite in "
            f"{spec.dtype}: the run diverged, or fp16 is too narrow; export an earlier checkpoint, "
            "or use bf16"
        )
    return tensor


def _write_file(path: Path, pieces: dict[str, Tensor], spec: ExportSpec) -> None:
    parts = [Part(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in pieces.items()]
    file = TensorFile(path, parts, schedule_metadata(spec.source.schedule))
    try:
        for name, tensor in pieces.items():
            file.write(name, tensor)
    finally:
        file.close()


def _side_files(spec: ExportSpec) -> dict[str, Any]:
    job = lightx2v_job(spec)
    job["lora_configs"] = [{"path": LORA_FILE, "strength": 1.0}]
    api = workflow(spec.source.about, base_weights(spec), lora=comfyui_name(spec))
    return {LIGHTX2V_FILE: job, WORKFLOW_API_FILE: api, WORKFLOW_FILE: to_ui(api)}


@dataclass(frozen=True)
class _InDiffusers:
    """The part of adapters that ``load_lora_weights`` applies."""

    adapters: PortableAdapters

    def delta(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        return self.adapters.delta(name, shape) if diffusers_takes(name, shape) else None

    def where(self) -> str:
        return self.adapters.where()


def _losses(
    spec: ExportSpec,
    teacher: Tensors,
    folder: Path,
    ranks: dict[str, int],
    advance: Advance = lambda n: None,
) -> Losses:
    """The losses of the written file, measured on the file."""
    source = spec.source
    adapters = PortableAdapters(read_headers([folder / LORA_FILE]))
    layers: dict[str, dict[str, float]] = {}
    lost = changed = 0.0
    for name, shape in source.tensors.shapes.items():
        advance(1)
        exact = _delta(spec, teacher, name)
        got = adapters.delta(name, shape)
        off, size = norm(exact if got is None else got - exact), norm(exact)
        lost, changed = lost + off**2, changed + size**2
        if is_matrix(name, shape) and (size or off or source.adapters is None):
            error = off / size if size else 0.0
            rank = {"rank": ranks[name]} if name in ranks else {}
            layers[name] = {**rank, "energy": 1 - error**2, "relative_error": error}

    def run(tensors: Tensors) -> Tensor:
        return probe(source.model, lambda name: torch.float32, lambda n: tensors.read(n).float())

    student, base = run(source.tensors), run(teacher)
    merged = run(MergedTensors(teacher, adapters))
    partly = run(MergedTensors(teacher, _InDiffusers(adapters)))
    change = norm(student - base) or 1.0
    return Losses(
        "lora",
        relative_error(merged, student),
        layers,
        {
            "energy": 1 - lost / changed if changed else 1.0,
            "change_lost": norm(merged - student) / change,
            "forward_error_in_diffusers": relative_error(partly, student),
            "change_lost_in_diffusers": norm(partly - student) / change,
        },
    )


def check_rank(rank: int | None, energy: float | None) -> None:
    """Raises unless the options are in range.

    Raises:
        UserError: they are not.
    """
    if rank is not None and rank < 1:
        raise UserError(f"rank: {rank} is below 1; use 32 or 64")
    if energy is not None and not 0 < energy <= 1:
        raise UserError(f"energy: {energy} is not in (0, 1]; use 0.95 or so")
