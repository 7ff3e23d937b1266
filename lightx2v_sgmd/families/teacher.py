"""The teacher that a job names."""

from __future__ import annotations

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.job.schema import Teacher
from lightx2v_sgmd.system.errors import UserError


def open_teacher(teacher: Teacher) -> Model:
    """Reads the configuration of a job's teacher without loading weights.

    Args:
        teacher: The job's section. Its ``loras`` are merged into the model's transformer.

    Raises:
        UserError: the model cannot be used (see ``open_model``), or a LoRA does not fit it.
    """
    model, loras = open_model(teacher.path, teacher.base), teacher.lora_files
    try:
        return model.with_loras(loras)
    except UserError as error:
        raise UserError(f"teacher.loras: {str(error).removeprefix('lora: ')}") from error
