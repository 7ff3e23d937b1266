"""Opens a checkpoint of LightX2V's trainer as a student to export, with the steps of its YAML.

LightX2V's trainer (``lightx2v_train/trainers/dmd/checkpoint.py``) writes a folder
``checkpoint-000001000`` with a copy of its YAML, ``config.yaml``. The student is in
``student_consolidated/transformer`` where ``training.save_consolidated_student`` asked for it, or
in ``model_state.pt`` if one process trained it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.teacher import open_teacher, with_defaults
from lightx2v_sgmd.files.manifest import Manifest, VideoFacts
from lightx2v_sgmd.files.tensors.dtypes import OPTIONS
from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.job.from_lightx2v.convert import convert
from lightx2v_sgmd.system.errors import UserError
from weights.io.source import ExportSource, model_tensors
from weights.io.tensors import network_shapes

CONFIG: Final = "config.yaml"
_WEIGHTS: Final = ("student_consolidated/transformer", "model_state.pt")
_ADAPTERS: Final = "pytorch_lora_weights.safetensors"
_TRAINER_FILES: Final = (*_WEIGHTS, _ADAPTERS, "dist_state", "trainer_state.pt")
_NAME: Final = re.compile(r"checkpoint-(\d{1,12})")


def is_lightx2v_checkpoint(folder: Path) -> bool:
    """True for a checkpoint folder of LightX2V's trainer."""
    if not (folder / CONFIG).is_file():
        return False
    return any((folder / name).exists() for name in _TRAINER_FILES)


def open_lightx2v_checkpoint(folder: Path) -> ExportSource:
    """A student that LightX2V's trainer trained in full; nothing of it is loaded yet.

    Args:
        folder: The checkpoint.

    Raises:
        UserError: its YAML is of a model or method that this project does not know, the student's
            weights are not there as one set, or do not fit the teacher's network.
    """
    job = convert(folder / CONFIG).job
    found = next((folder / name for name in _WEIGHTS if (folder / name).exists()), None)
    if found is None:
        raise UserError(f"{folder}: {_why_not(folder)}")
    if found.is_dir() and len(files := sorted(found.glob("*.safetensors"))) == 1:
        found = files[0]  # which needs no configuration beside it
    teacher = open_teacher(job.teacher)
    job = with_defaults(job, teacher)
    student = open_model(found, job.teacher.path)
    if network_shapes(student) != network_shapes(teacher):
        raise UserError(
            f"{found}: is not of the size of {job.teacher.path}, which {CONFIG} names; give the "
            "checkpoint with its own YAML"
        )
    tensors = model_tensors(student)
    stored = {tensors.dtype(name) for name in tensors.shapes}
    precisions = [option for option, dtype in OPTIONS.items() if stored == {dtype}]
    method = parse_value(job.to_yaml(), "the job")["method"]
    number = _NAME.fullmatch(folder.resolve().name)
    about = Manifest(
        method={"name": method.pop("name"), "options": method, "trainer": "lightx2v_train"},
        teacher=job.teacher.path,
        teacher_dtype=job.teacher.dtype,
        schedule=job.steps,
        guidance_scale=job.teacher.guidance_scale,
        guidance_scale_2=job.teacher.guidance_scale_2,
        video=VideoFacts(job.video.height, job.video.width, job.video.frames, teacher.fps),
        step=int(number[1]) if number else job.train.iterations,
        ema=False,
        dtype=precisions[0] if precisions else "bf16",
        negative_prompt=teacher.negative_prompt_for(job.teacher.negative_prompt),
    )
    return ExportSource(found, tensors, teacher, about)


def _why_not(folder: Path) -> str:
    if (folder / _ADAPTERS).is_file():
        return (
            f"holds adapters; run them with `lightx2v-sgmd generate --weights TEACHER --lora "
            f"{folder / _ADAPTERS} --assume-schedule lightx2v`"
        )
    return (
        "holds the student in parts of FSDP2 alone; set training.save_consolidated_student to true "
        "in LightX2V's YAML and let it save again"
    )
