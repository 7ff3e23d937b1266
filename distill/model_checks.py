"""Checks of a job that need the teacher's configuration, but no weights."""

from __future__ import annotations

from pathlib import Path

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.model_folder import model_folder
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.networks.adapters import check_adapters
from lightx2v_sgmd.parallel.sequence import check_degree
from lightx2v_sgmd.rollout import check_solver
from lightx2v_sgmd.system.errors import UserError


def check_against_model(job: Job, model: Model) -> None:
    """Checks what only the model's configuration can tell; loads no weights.

    Raises:
        UserError: ``parallel.sequence`` does not divide the heads, a video has no number of frames,
            its size does not fit the VAE and the network's patches, the student's solver is not
            one for the model's diffusion, or adapters are for layers that it does not have.
    """
    check_solver(job.schedule.solver, model.interpolant)
    check_degree(job.parallel.sequence, model.num_heads, job.teacher.path)
    if job.video.num_frames is None and not model.size_rules.images:
        raise UserError(
            f"video.num_frames: is missing, but {job.teacher.path} makes videos; give a number "
            f"such as {model.size_rules.nearest_frames(81)}"
        )
    model.latent_shape(job.video.height, job.video.width, job.video.frames)
    for name, role in (("student", job.student), ("fake_score", job.fake_score)):
        if role.adapters is not None:
            check_adapters(role.adapters, model, name)


def teacher_sources(job: Job) -> dict[str, Path | None]:
    """The files of a job's teacher by their keys, for ``refuse_overlap``."""
    base = job.teacher.base
    loras = {
        f"teacher.loras {number}": lora.path
        for number, lora in enumerate(job.teacher.lora_files, start=1)
    }
    return {
        "teacher.path": model_folder(job.teacher.path),
        "teacher.base": None if base is None else Path(base),
        **loras,
    }


def job_sources(job: Job) -> dict[str, Path | None]:
    """Everything that the training of a job reads, by its keys, for ``refuse_overlap``."""
    pixels = job.method.pixel_discriminator
    return {
        **teacher_sources(job),
        "data.latents": job.data.latents,
        "method.vision_encoder": None if pixels is None else Path(pixels.vision_encoder),
    }
