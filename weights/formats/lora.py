"""lora: adapters for the teacher: for LightX2V, ComfyUI, diffusers, PEFT and others, by names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.files.lora_folder import PEFT_CONFIG, lora_file_in
from lightx2v_sgmd.files.tensors.dtypes import FILE_NAMES, OPTIONS
from lightx2v_sgmd.files.tensors.safetensors_files import Header, schedule_metadata, schedule_of
from lightx2v_sgmd.files.tensors.safetensors_writer import Part, TensorFile
from lightx2v_sgmd.system.errors import UserError
from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.base import Format
from weights.formats.comfyui import base_weights, check_even, start_image, stem
from weights.formats.comfyui_workflow import (
    WORKFLOW_API_FILE,
    WORKFLOW_FILE,
    pair_workflow,
    to_ui,
    workflow,
)
from weights.formats.diffusers import scheduler_problems, write_scheduler
from weights.formats.layout import stored_finite
from weights.formats.lora_losses import (
    change_of,
    forward_error,
    layer_errors,
    measured_losses,
    passes,
)
from weights.formats.lora_usage import usage_of
from weights.formats.programs import COMFYUI, LIGHTX2V
from weights.formats.wan import (
    EXPERTS,
    LIGHTX2V_FILE,
    high_noise_steps,
    lightx2v_job,
    whole_steps,
)
from weights.io.adapters import (
    Factors,
    StoredAdapters,
    difference_names,
    factor_names,
    factorize,
    is_matrix,
)
from weights.io.heap import HeapTrimmer
from weights.io.json_files import json_problems, write_json
from weights.io.lora_names import (
    NAMES,
    PEFT,
    PORTABLE,
    header_settings,
    pairs_in,
    peft_config,
    renamed,
)
from weights.io.model_spec import model_spec
from weights.io.network import SLACK
from weights.io.quantize import norm
from weights.io.source import model_tensors, teacher_tensors
from weights.io.tensors import MergedTensors, Tensors, network_shapes
from weights.public_names import public_name

DEFAULT_RANK: Final = 64
_NAMES_OF_PAIRS: Final = ("portable", "diffusers", "peft")
"""The names of adapters of two experts; the other programs' loaders of pairs were not read."""
ONLY: Final = ("blocks",)
"""The values of ``--only``."""


class LoraFormat(Format):
    """Adapters under the names that a program reads, with its configurations."""

    name = "lora"
    dtypes = ("bf16", "fp16", "fp32")
    stored_as = "{dtype} adapters, {names} names"
    library = "diffusers"
    programs = (COMFYUI, LIGHTX2V)
    holds_adapters = True
    holds_experts = True

    def check(self, spec: ExportSpec) -> None:
        """Refuses what the program cannot express; see ``Format.check``."""
        self.check_options(spec)
        if spec.source.second is not None and spec.names not in _NAMES_OF_PAIRS:
            raise UserError(
                f"names: adapters of two experts are not written under the names of {spec.names}; "
                f"use {', '.join(_NAMES_OF_PAIRS)}"
            )
        if spec.only is not None and spec.only not in ONLY:
            raise UserError(f"only: {spec.only!r} is unknown; use {', '.join(ONLY)}")
        spec.source.model.scheduler_config(spec.source.schedule)
        check_even(spec.source.schedule)
        whole_steps(spec.source.schedule)

    def check_options(self, spec: ExportSpec) -> None:
        """Refuses options that contradict one another, or the source, in every family.

        Raises:
            UserError: they do.
        """
        if spec.rank is not None and spec.energy is not None:
            raise UserError("rank, energy: give only one of the two")
        if spec.source.adapters is not None and (spec.rank or spec.energy):
            raise UserError(
                "rank, energy: the source consists of adapters already, which are exported as they "
                "are; leave the option out"
            )
        if spec.names not in NAMES:
            raise UserError(f"names: {spec.names!r} is unknown; use {', '.join(NAMES)}")

    def nbytes(self, spec: ExportSpec) -> int:
        """The approximate size of the export on disk, in bytes."""
        return sum(map(self._nbytes_of_one, spec.experts))

    def _nbytes_of_one(self, spec: ExportSpec) -> int:
        total, adapters = 0, spec.source.adapters
        copies = 2 if spec.names == PORTABLE.name else 1  # one is for PEFT
        if adapters is not None:
            infos = adapters.header.tensors.values()
            count = sum(torch.Size(i.shape).numel() for i in infos)
            return copies * count * OPTIONS[spec.dtype].itemsize
        for name, shape in spec.source.tensors.shapes.items():
            numel = torch.Size(shape).numel()
            if is_matrix(name, shape):
                rank = min(*shape) if spec.energy else min(*shape, spec.rank or DEFAULT_RANK)
                numel = sum(shape) * rank
            total += numel * OPTIONS[spec.dtype].itemsize
        return copies * total

    def count(self, spec: ExportSpec) -> int:
        """The weights that are written, and those that are read to measure what is lost."""
        return super().count(spec) * (1 + passes(spec)[0])

    def verified_count(self, spec: ExportSpec) -> int:
        """The weights that are compared, and those of a forward pass."""
        return super().count(spec) * passes(spec)[1]

    def write(self, spec: ExportSpec, folder: Path, advance: Advance) -> Losses:
        """Writes weights and configurations into an empty folder; returns what was lost."""
        losses: dict[str, Losses | None] = {}
        for each in spec.experts:
            network = network_folder(folder, each)
            network.mkdir(exist_ok=True)
            teacher = teacher_tensors(each.source, each.expert)
            self.write_adapters(each, teacher, network, advance)
            adapters = StoredAdapters.checked(network / file_name(each), each.source.tensors.shapes)
            losses[each.part] = measured_losses(each, teacher, adapters, advance)
        write_scheduler(folder, spec.source.model, spec.source.schedule)
        for path, content in _side_files(spec).items():
            write_json(folder / path, content)
        joined = losses[""] if "" in losses else Losses.of_experts(losses)
        assert joined is not None, "adapters always come with a report"
        return joined

    def write_adapters(
        self, spec: ExportSpec, teacher: Tensors, folder: Path, advance: Advance
    ) -> None:
        """Writes the files of one network's adapters.

        Args:
            spec: The export of that network.
            teacher: The weights that the adapters are for.
            folder: Where the files go.
            advance: Called after each weight.
        """
        pieces: dict[str, Tensor] = {}
        trimmer = HeapTrimmer()
        for name in spec.source.tensors.shapes:
            pieces |= _pieces(spec, teacher, name)
            trimmer.trim()
            advance(1)
        _write_files(spec, folder, pieces)

    def problems(
        self, spec: ExportSpec, folder: Path, losses: Losses | None, advance: Advance
    ) -> list[str]:
        """Lists what the program would read that differs from the source."""
        assert losses is not None, "adapters always come with a report"
        problems = scheduler_problems(folder, spec.source.model, spec.source.schedule)
        for path, content in _side_files(spec).items():
            problems += json_problems(folder / path, content)
        for each in spec.experts:
            network = network_folder(folder, each)
            problems += _network_problems(each, network, each.losses_of(losses), advance)
        return problems

    def usage(self, spec: ExportSpec, values: Mapping[str, Any]) -> str:
        """The model card's sections on the programs that take the file."""
        return usage_of(spec, values, [_location(each) for each in spec.experts])

    def weight_files(self, folder: Path, expert: int = 0) -> list[Path]:
        """The file of adapters; where there is another one for PEFT, that for all others."""
        within = folder / EXPERTS[expert] if self.expert_count(folder) > 1 else folder
        file = lora_file_in(within)
        if file is None:
            raise UserError(f"{folder}: has no one file of adapters; export the weights again")
        return [file]

    def expert_count(self, folder: Path) -> int:
        """The number of networks that it has adapters of: 2 where there is a folder for each."""
        return 2 if (folder / EXPERTS[1]).is_dir() else 1

    def open_tensors(
        self, folder: Path, header: Header, model: Model
    ) -> tuple[Tensors, StoredAdapters]:
        """The teacher's weights with the adapters merged into them, and the adapters."""
        stored = {info.file for info in header.tensors.values()}
        (file,) = stored or self.weight_files(folder)
        adapters = StoredAdapters.checked(file, network_shapes(model))
        return MergedTensors(model_tensors(model), adapters), adapters


def file_name(spec: ExportSpec) -> str:
    """The name of the file; under portable names no two students' files have the same."""
    return NAMES[spec.names].file.format(stem=stem(spec))


def network_folder(folder: Path, spec: ExportSpec) -> Path:
    """The folder of a network's adapters: the export itself, or an expert's folder in it."""
    return folder / EXPERTS[spec.expert] if spec.part else folder


def _location(spec: ExportSpec) -> str:
    """The path of a network's file of adapters in the export."""
    return (network_folder(Path(), spec) / file_name(spec)).as_posix()


def _network_problems(
    spec: ExportSpec, folder: Path, losses: Losses, advance: Advance
) -> list[str]:
    """Lists what in the adapters of one network differs from the source."""
    problems: list[str] = []
    teacher, shapes = teacher_tensors(spec.source, spec.expert), spec.source.tensors.shapes
    try:
        adapters = StoredAdapters.checked(folder / file_name(spec), shapes)
        problems += _peft_problems(spec, folder, adapters)
    except UserError as error:
        return [*problems, str(error)]
    header = adapters.header
    if schedule_of(header.metadata) != spec.source.schedule:
        problems.append("the weights carry another schedule than the source")
    expected_type = FILE_NAMES[OPTIONS[spec.dtype]]
    for name, info in header.tensors.items():
        if info.dtype != expected_type and not name.endswith(".alpha"):
            problems.append(f"{name} is {info.dtype}, not {expected_type}")
    now, _, _ = layer_errors(spec, teacher, adapters, advance)
    for name, values in losses.layers.items():
        off = now[name]["relative_error"] if name in now else 1.0
        if off > values["relative_error"] * SLACK + 1e-7:
            problems.append(
                f"{name} is off by {off:.2%}, but {values['relative_error']:.2%} is reported"
            )
    forward = forward_error(spec, teacher, adapters, advance)
    if forward > losses.forward_error * SLACK + 1e-7:
        reported = f"{losses.forward_error:.2%} is reported"
        problems.append(f"a forward pass is off by {forward:.2%}, but {reported}")
    return problems


def _pieces(spec: ExportSpec, teacher: Tensors, name: str) -> dict[str, Tensor]:
    """The tensors that the file holds for one weight."""
    dtype = OPTIONS[spec.dtype]
    shape = spec.source.tensors.shapes[name]
    adapters = spec.source.adapters
    if spec.only == "blocks" and not _is_of_blocks(spec, name):
        return {}
    if not is_matrix(name, shape):
        delta = change_of(spec, teacher, name) if adapters is None else adapters.delta(name, shape)
        if delta is None or not delta.any():
            return {}
        stored = _finite(spec, name, delta.to(dtype))
        return dict.fromkeys(difference_names(name), stored)
    if adapters is None:
        rank = (spec.rank or DEFAULT_RANK) if spec.energy is None else None
        factors = factorize(change_of(spec, teacher, name), name, rank, spec.energy)
    else:
        trained = adapters.factors(name)
        if trained is None and not _wanted_as_zero(spec, name):
            return {}
        factors = trained or Factors(torch.zeros(shape[0], 1), torch.zeros(1, shape[1]))
    up, down, alpha = factor_names(name)
    above = factors.up if alpha is not None or factors.scale == 1 else factors.up * factors.scale
    tensors = {
        up: _finite(spec, name, above.to(dtype)),
        down: _finite(spec, name, factors.down.to(dtype)),
    }
    if alpha is not None:
        tensors[alpha] = torch.tensor(factors.scale * factors.rank)
    return tensors


def _wanted_as_zero(spec: ExportSpec, name: str) -> bool:
    """True if a layer needs zero adapters: diffusers wants all outside blocks, or none."""
    adapters = spec.source.adapters
    assert adapters is not None, "extracted adapters are of all layers"
    outside = [n for n in spec.source.tensors.shapes if not n.startswith("blocks.")]
    return name in outside and any(adapters.factors(n) is not None for n in outside)


def _finite(spec: ExportSpec, name: str, tensor: Tensor) -> Tensor:
    return stored_finite(tensor, name, spec.source.tensors.where(name), spec.dtype)


def _is_of_blocks(spec: ExportSpec, name: str) -> bool:
    """True if a weight belongs to a linear layer of a block."""
    matrix = f"{name.removesuffix('.weight').removesuffix('.bias')}.weight"
    shapes = spec.source.tensors.shapes
    return name.startswith("blocks.") and matrix in shapes and is_matrix(matrix, shapes[matrix])


def _write_files(spec: ExportSpec, folder: Path, portable: dict[str, Tensor]) -> None:
    """Writes adapters under the names that were asked for, and portable ones for PEFT too."""
    names, pairs = NAMES[spec.names], pairs_in(portable, spec.source.tensors.shapes)
    metadata = schedule_metadata(spec.source.schedule) | model_spec(spec)
    tensors = portable if names is PORTABLE else renamed(pairs, names)
    path = folder / file_name(spec)
    write_file(path, tensors, metadata | header_settings(pairs, names))
    if names is PORTABLE and pairs:
        write_file(folder / PEFT.file, renamed(pairs, PEFT), metadata)
    if names in (PORTABLE, PEFT) and pairs:
        base = public_name(spec.source.about.base)
        write_json(folder / PEFT_CONFIG, peft_config(pairs, base))


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file of tensors that are in memory."""
    parts = [Part(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    file = TensorFile(path, parts, metadata)
    try:
        for name, tensor in tensors.items():
            file.write(name, tensor)
    finally:
        file.close()


def _peft_problems(spec: ExportSpec, folder: Path, adapters: StoredAdapters) -> list[str]:
    """Lists linear layers whose change is another one in PEFT's file than in the main one."""
    if spec.names != PORTABLE.name or not adapters.file.layers:
        return []
    shapes = spec.source.tensors.shapes
    for_peft = StoredAdapters.checked(folder / PEFT.file, shapes)
    problems = []
    for layer in adapters.file.layers:
        for name in (f"{layer}.weight", f"{layer}.bias"):
            ours, theirs = adapters.delta(name, shapes[name]), for_peft.delta(name, shapes[name])
            off = theirs if ours is None else ours if theirs is None else theirs - ours
            size = norm(ours) if ours is not None else 0.0
            if off is not None and norm(off) > SLACK * 1e-2 * size:
                problems.append(f"{name} is another one in {PEFT.file}")
    return problems


def _side_files(spec: ExportSpec) -> dict[str, Any]:
    """LightX2V's job and ComfyUI's workflows, for the programs that run the student's steps so.

    LightX2V takes Wan2.2-TI2V-5B, but not in few steps, and ComfyUI's nodes for it are others.
    """
    model = spec.source.model
    if spec.names != PORTABLE.name or model.takes_image == "optionally":
        return {}
    job = lightx2v_job(spec)
    pair = len(spec.experts) > 1
    job["lora_configs"] = [
        {
            **({"name": EXPERTS[each.expert]} if pair else {}),
            "path": _location(each),
            "strength": 1.0,
        }
        for each in spec.experts
    ]
    if pair:
        first, second = spec.experts
        api = pair_workflow(
            spec.source.about,
            (base_weights(first), base_weights(second)),
            high_noise_steps(spec),
            (file_name(first), file_name(second)),
            start_image(model),
        )
    else:
        weights = base_weights(spec)
        api = workflow(spec.source.about, weights, file_name(spec), start_image(model))
    return {LIGHTX2V_FILE: job, WORKFLOW_API_FILE: api, WORKFLOW_FILE: to_ui(api)}


def check_rank(rank: int | None, energy: float | None) -> None:
    """Raises unless the options are in range.

    Raises:
        UserError: they are not.
    """
    if rank is not None and rank < 1:
        raise UserError(f"rank: {rank} is below 1; use 32 or 64")
    if energy is not None and not 0 < energy <= 1:
        raise UserError(f"energy: {energy} is not in (0, 1]; use 0.95 or so")
