"""Checks of a job that need the teacher's configuration, but no weights."""

from __future__ import annotations

from pathlib import Path

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.experts import boundary_of, expert_at
from lightx2v_sgmd.families.features import require_feature
from lightx2v_sgmd.families.sources.model_folder import model_folder
from lightx2v_sgmd.families.teacher import open_own_models, with_defaults
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.methods.base import DISCRIMINATOR, PIXEL_DISCRIMINATOR
from lightx2v_sgmd.networks.adapters import check_adapters
from lightx2v_sgmd.parallel.sequence import check_degree
from lightx2v_sgmd.rollout import check_solver
from lightx2v_sgmd.system.errors import UserError


def check_against_model(job: Job, model: Model) -> None:
    """Checks what only the model's configuration can tell; loads no weights.

    What the job leaves to the model's family is as in ``with_defaults``.

    Raises:
        UserError: the model's family lacks what the job asks for, the student's steps are not those
            of the family, its method reads videos of a model that makes images,
            ``parallel.sequence`` does not divide the heads, a video's size does not fit the VAE and
            the network's patches, the student's solver is not one for the model's diffusion,
            adapters are for layers that it does not have, the model has experts that the job cannot
            train, or a role starts from a model that does not go with the teacher.
    """
    job = with_defaults(job, model)
    own = open_own_models(job, model)
    check_solver(job.steps.solver, model.interpolant)
    _check_features(job, model)
    _check_experts(job, model)
    check_degree(job.parallel.sequence, model.num_heads, job.teacher.path)
    size = (job.video.height, job.video.width, job.video.frames)
    model.latent_shape(*size)
    for role_model in own.values():
        check_degree(job.parallel.sequence, role_model.num_heads, role_model.path)
        role_model.latent_shape(*size)
    for name, role in (("student", job.student), ("fake_score", job.fake_score)):
        if role.adapters is not None:
            check_adapters(role.adapters, own.get(name, model), name)


def _check_features(job: Job, model: Model) -> None:
    """Refuses what the model's family has not."""
    if job.steps.shift not in model.student_shifts:
        known = " or ".join(f"{shift:g}" for shift in model.student_shifts)
        raise UserError(
            f"schedule.shift: {job.steps.shift:g} is not that of a student of {model.family}, "
            f"which the engine and exported weights run; use {known}"
        )
    if job.parallel.sequence > 1:
        what = f"parallel.sequence: {job.parallel.sequence}"
        require_feature(model, "sequence", what, "1")
    if job.parallel.compile == "always" and "fast_blocks" not in model.features:
        _check_whole_blocks(job, model)
    if job.method.reads_latents == "videos" and model.size_rules.images:
        raise UserError(
            f"method.gan_weight: {job.method.name} reads encoded videos for its GAN term, and "
            f"{model.path} makes images, which are not encoded; leave it out (0)"
        )
    if job.teacher.loras:
        require_feature(model, "loras", "teacher.loras: a LoRA file", "weights with it merged")


def _check_whole_blocks(job: Job, model: Model) -> None:
    """Checks that whole blocks can be compiled, for a family without passes of its own.

    Raises:
        UserError: they cannot.
    """
    what = f"parallel.compile: always compiles whole blocks of {model.family}"
    if job.parallel.strategy != "local":
        raise UserError(
            f"{what}, which needs parallel.strategy local, not {job.parallel.strategy}; use auto "
            "or never"
        )
    if job.parallel.gradient_checkpointing == "selective":
        raise UserError(
            f"{what}, in which parallel.gradient_checkpointing selective sees no attention; use "
            "true or false"
        )


def _check_experts(job: Job, model: Model) -> None:
    """Checks that each expert has a step of the student and score times, and the method trains it.

    Raises:
        UserError: it is not so, or the job has a setting of a second expert that is not there.
    """
    experts = model.experts
    boundary = boundary_of(experts)
    if boundary is None:
        if job.teacher.guidance_scale_2 is not None:
            raise UserError(
                f"teacher.guidance_scale_2: {model.path} has one network and no second expert; "
                "leave it out (null)"
            )
        if job.method.high_noise_iterations:
            raise UserError(
                f"method.high_noise_iterations: {model.path} has one network, and phases train "
                "two experts one after the other; leave it out (0)"
            )
        return
    _check_phases(job)
    what = f"{model.path} has two experts, which meet at time {boundary:g}"
    if job.train.exit_step_per != "update":
        raise UserError(
            f"train.exit_step_per: {job.train.exit_step_per} is not for this teacher: {what}, and "
            "an update trains the expert of its exit step; use update"
        )
    heads = {DISCRIMINATOR, PIXEL_DISCRIMINATOR} & {*job.method.roles}
    if heads or job.method.reads_latents == "pairs":
        raise UserError(
            f"method.name: {job.method.name} trains a discriminator here, and {what}; its heads "
            "read one network only: use sgmd, or dmd2 with gan_weight 0"
        )
    steps = [expert_at(boundary, time) for time in job.steps.times[:-1]]
    for number, expert in enumerate(experts):
        if number not in steps:
            timesteps = ", ".join(f"{t:g}" for t in job.steps.timesteps.tolist())
            raise UserError(
                f"schedule.base: none of the steps {timesteps} is the {expert.name} expert's, and "
                f"{what}; use more steps"
            )
    for key, value, wrong in (
        ("sigma_min", job.train.sigma_min, job.train.sigma_min >= boundary),
        ("sigma_max", job.train.sigma_max, job.train.sigma_max <= boundary),
    ):
        if wrong:
            raise UserError(
                f"train.{key}: {value:g} leaves no score times to one expert: {what}; move it to "
                "the other side"
            )


def _check_phases(job: Job) -> None:
    """Checks that both phases of Phased DMD have iterations, and that samples end at a time.

    Raises:
        UserError: it is not so.
    """
    first = job.method.high_noise_iterations
    if first and job.steps.solver != "euler":
        raise UserError(
            f"method.high_noise_iterations: phases need schedule.solver euler, not "
            f"{job.steps.solver}, whose steps have no sample at the boundary; use euler, or 0"
        )
    if first >= job.train.iterations:
        raise UserError(
            f"method.high_noise_iterations: {first} leaves none of the {job.train.iterations} "
            "iterations to the low-noise expert; lower it, or raise train.iterations"
        )


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
    own = {"student.path": job.student.path, "fake_score.path": job.fake_score.path}
    return {
        **teacher_sources(job),
        **{key: None if path is None else model_folder(path) for key, path in own.items()},
        "data.latents": job.data.latents,
        "method.vision_encoder": None if pixels is None else Path(pixels.vision_encoder),
    }
