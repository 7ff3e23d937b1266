"""A student to export and its teacher, with their weights on disk.

``student_tensors`` is the one place that knows how a checkpoint holds its student.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.files.manifest import Manifest
from lightx2v_sgmd.files.student_weights import student_files
from lightx2v_sgmd.files.tensors.safetensors_files import check_keys, read_headers, schedule_of
from lightx2v_sgmd.files.yaml_loader import read_tree
from lightx2v_sgmd.job.schema import AdapterSettings
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from weights.io.adapters import StackedAdapters, StoredAdapters, TrainedAdapters
from weights.io.tensors import (
    FileTensors,
    MergedTensors,
    ReaderTensors,
    Tensors,
    WithConstants,
    constant_names,
    network_shapes,
)


@dataclass(frozen=True)
class ExportSource:
    """A student to export; nothing of it is loaded yet.

    Attributes:
        path: The checkpoint or the exported folder that holds it.
        tensors: The student's weights.
        model: The network's configuration.
        about: The manifest. ``dtype`` is the type in which it is stored; ``sha256`` is empty.
        job_file: The job that made it, if it is there.
        metrics: The results of its evaluation, if it has been evaluated.
        adapters: The adapters that make it of its teacher, or of the base of a teacher that has
            LoRAs; None if it was trained in full.
        second: The student's second expert, whose ``model`` is that network alone; None if the
            model has one network.
    """

    path: Path
    tensors: Tensors
    model: Model
    about: Manifest
    job_file: Path | None = None
    metrics: Mapping[str, Any] | None = None
    adapters: StoredAdapters | StackedAdapters | TrainedAdapters | None = None
    second: ExportSource | None = None

    @property
    def lora(self) -> AdapterSettings | None:
        """The settings of its adapters; None if all weights were trained, or if no job is there."""
        student = self._job_section("student")
        return AdapterSettings(**student["lora"]) if student.get("train") == "lora" else None

    @property
    def step(self) -> int:
        """The number of iterations it was trained for."""
        return self.about.step

    @property
    def ema(self) -> bool:
        """True if these are the EMA weights."""
        return self.about.ema

    @property
    def schedule(self) -> Schedule:
        """The steps it was trained on."""
        return self.about.schedule

    @property
    def prompts(self) -> str | None:
        """The value of ``data.prompts`` in its job, if the job is there."""
        prompts = self._job_section("data").get("prompts")
        return None if prompts is None else str(prompts)

    def _job_section(self, name: str) -> dict[str, Any]:
        if self.job_file is None:
            return {}
        section = read_tree(self.job_file)[0].get(name, {})
        return section if isinstance(section, dict) else {}


def student_tensors(
    checkpoint: Path,
    averaged: bool,
    model: Model,
    lora: AdapterSettings | None,
    expert: int = 0,
) -> tuple[Tensors, TrainedAdapters | None, Schedule | None]:
    """A checkpoint's student, its adapters if it has any, and the schedule that its file carries.

    Args:
        checkpoint: The checkpoint's folder.
        averaged: True for the moving average, False for the last weights.
        model: The teacher, whose weights adapters are merged into.
        lora: The settings of the adapters; None if all weights were trained.
        expert: The index of the expert that ``model`` is.

    Raises:
        UserError: the file is damaged or does not fit the network, or adapters' teacher is not
            on this machine and cannot be fetched.
    """
    files = student_files(checkpoint, averaged, expert)
    what = str(files[0] if len(files) == 1 else checkpoint)
    header = read_headers(files)
    carried = schedule_of(header.metadata)
    if lora is None:
        shapes, constants = network_shapes(model), constant_names(model)
        trained = {name: shape for name, shape in shapes.items() if name not in constants}
        tensors: Tensors = FileTensors.checked(header, trained, str, what)
        if constants:
            tensors = WithConstants(tensors, model_tensors(model), shapes)
        return tensors, None, carried
    adapters = TrainedAdapters.checked(header, lora, model, what)
    return MergedTensors(model_tensors(model), adapters), adapters, carried


def teacher_tensors(source: ExportSource, expert: int = 0) -> Tensors:
    """The weights that adapters of a student are added to, in whatever layout they are.

    These are the weights that it started from, without LoRAs unless the adapters go on top of them.

    Args:
        source: The student.
        expert: The index of the expert that it is, for a model that has two.

    Raises:
        UserError: they are not on this machine and cannot be fetched, or are damaged.
    """
    if source.about.loras:
        return model_tensors(source.model)
    return model_tensors(teacher_of(source.about, source.job_file).experts[expert].model)


def teacher_of(about: Manifest, job_file: Path | None) -> Model:
    """The model that a student started from, its teacher unless it says so, without LoRAs.

    The student's job says what a lone file of weights belongs to.
    """
    if about.student_base is not None:
        return open_model(about.student_base)
    base = None
    if job_file is not None and job_file.is_file():
        section = read_tree(job_file)[0].get("teacher", {})
        base = section.get("base") if isinstance(section, dict) else None
        if base is not None and not isinstance(base, str):
            raise UserError(f"{job_file}: teacher.base: is not text; export the weights again")
    return open_model(about.teacher, base)


def model_tensors(model: Model) -> Tensors:
    """A model's network, checked against its configuration."""
    weights = model.transformer_weights()
    shapes = network_shapes(model)
    check_keys(weights.header, shapes, f"teacher.path: {model.path}")
    return ReaderTensors(weights, shapes)
