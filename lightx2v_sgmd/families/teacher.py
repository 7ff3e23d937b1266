"""The teacher that a job names."""

from __future__ import annotations

from lightx2v_sgmd.families.wan import WanModel, open_wan
from lightx2v_sgmd.job.schema import Teacher
from lightx2v_sgmd.system.errors import UserError


def open_teacher(teacher: Teacher) -> WanModel:
    """Reads the configuration of a job's teacher without loading weights.

    Args:
        teacher: The job's section. Its ``loras`` are merged into the model's transformer.

    Raises:
        UserError: the model cannot be used (see ``open_wan``), or a LoRA does not fit it.
    """
    model, loras = open_wan(teacher.path, teacher.base), teacher.lora_files
    try:
        return model.with_loras(loras)
    except UserError as error:
        raise UserError(f"teacher.loras: {str(error).removeprefix('lora: ')}") from error
