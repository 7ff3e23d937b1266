"""The models that a job names: its teacher, and what student and fake score start from.

What a job leaves out and the teacher's family decides is filled in by ``with_defaults``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.experts import boundary_of, loras_of
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.interpolants import Interpolant
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job, Teacher
from lightx2v_sgmd.rollout import solvers_of
from lightx2v_sgmd.system.errors import UserError

_COMPARED: Final = 64
"""Numbers of each tensor that are compared."""
_ROUNDING: Final = 0.02
"""Largest difference, of the numbers' size, that two precisions of one file make."""


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


def family_defaults(job: Job, model: Model) -> dict[str, Any]:
    """The values that a job leaves to its teacher's family, by the job's dotted keys.

    Args:
        job: The job.
        model: The opened teacher.
    """
    values: dict[str, Callable[[], Any]] = {
        "schedule.shift": lambda: model.student_shifts[0],
        "schedule.solver": lambda: solvers_of(model.interpolant)[0],
        "student.lora.targets": lambda: model.adapter_targets,
        "fake_score.lora.targets": lambda: model.adapter_targets,
        "video.num_frames": lambda: None if model.size_rules.images else model.usual_frames,
    }
    found = {key: values[key]() for key in _left_to_family(job)}
    return {key: value for key, value in found.items() if value is not None}


def _left_to_family(job: Job) -> list[str]:
    """The dotted keys of a job that have no value, and get one from the teacher's family."""
    adapters = {"student": job.student.adapters, "fake_score": job.fake_score.adapters}
    values = {
        "schedule.shift": job.schedule.shift,
        "schedule.solver": job.schedule.solver,
        "video.num_frames": job.video.num_frames,
        **{f"{role}.lora.targets": lora.targets for role, lora in adapters.items() if lora},
    }
    return [key for key, value in values.items() if value is None]


def with_defaults(job: Job, model: Model) -> Job:
    """The same job with ``family_defaults`` filled in; one that is whole stays as it is."""
    for key, value in family_defaults(job, model).items():
        section, *inner, last = key.split(".")
        settings = getattr(job, section)
        if inner:  # a role's adapters
            settings = replace(settings, lora=replace(settings.adapters, **{last: value}))
        else:
            settings = replace(settings, **{last: value})
        job = replace(job, **{section: settings})
    return job


def saved_job(path: Path, teacher: Teacher | None = None) -> Job:
    """Reads a job that a run or a comparison saved, whole; one of an older version has gaps.

    Args:
        path: The job's file.
        teacher: The teacher whose family fills the gaps; None is the job's own.

    Raises:
        UserError: the file cannot be used, or something is left out and the teacher cannot be read.
    """
    job = load_job(path)
    if set(_left_to_family(job)) <= {"video.num_frames"}:  # images have none
        return job
    return with_defaults(job, open_teacher(teacher or job.teacher))


def with_known_defaults(job: Job, origins: Mapping[str, str]) -> tuple[Job, dict[str, str]]:
    """The job ``with_defaults`` if its teacher can be read here, and where each value comes from.

    Args:
        job: The job.
        origins: The place of each key that a file or the command line gave, by its dotted path.

    Returns:
        The job, and the places with those of the family's values, filled in or not.
    """
    try:
        model = open_teacher(job.teacher)
    except UserError:
        unknown = "default of the teacher's family; the teacher cannot be read here"
        return job, {**dict.fromkeys(_left_to_family(job), unknown), **origins}
    from_family = dict.fromkeys(family_defaults(job, model), f"default of {model.family}")
    return with_defaults(job, model), {**origins, **from_family}


def open_own_models(job: Job, teacher: Model) -> dict[str, Model]:
    """Reads the configurations of the models that roles start from in place of the teacher.

    Args:
        job: The job. ``student.path`` and ``fake_score.path`` name the models.
        teacher: The opened teacher.

    Returns:
        The models by role; a role that starts from the teacher is not in it.

    Raises:
        UserError: a model cannot be used, or does not work in the teacher's latents, with its text
            encoder, or on its path from data to noise.
    """
    found = {}
    for role, settings in (("student", job.student), ("fake_score", job.fake_score)):
        if settings.path is None or role not in job.method.roles:
            continue
        if settings.path == teacher.path and not loras_of(teacher.experts):
            continue
        try:
            model = open_model(settings.path)
        except UserError as error:
            reason = str(error).removeprefix("teacher.path: ")
            raise UserError(f"{role}.path: {reason}") from error
        _check_same_space(role, model, teacher)
        found[role] = model
    return found


def _check_same_space(role: str, model: Model, teacher: Model) -> None:
    """Raises ``UserError`` unless a network can take the teacher's latents, times and text."""
    what = f"{role}.path: {model.path}"
    remedy = "use a model of the teacher's family with the same VAE and text encoder"
    if model.family != teacher.family or model.takes_image != teacher.takes_image:
        kinds = [f"{each.family}{_starts_from(each)}" for each in (model, teacher)]
        raise UserError(f"{what} is {kinds[0]}, and the teacher is {kinds[1]}; {remedy}")
    counts = [len(each.experts) for each in (model, teacher)]
    if counts[0] != counts[1] or boundary_of(model.experts) != boundary_of(teacher.experts):
        words = [f"{count} expert{'s' if count > 1 else ''}" for count in counts]
        raise UserError(
            f"{what} has {words[0]}, and the teacher {words[1]}, or they meet elsewhere; {remedy}"
        )
    if (differing := _difference(model.vae_config, teacher.vae_config)) is not None:
        raise UserError(f"{what} has another VAE than the teacher ({differing}); {remedy}")
    latents = [_latents(each) for each in (model, teacher)]
    if latents[0] != latents[1]:
        differing = _difference(*latents)
        raise UserError(f"{what} makes other latents than the teacher ({differing}); {remedy}")
    if not _same_path(model.interpolant, teacher.interpolant):
        raise UserError(f"{what} was trained on another noise schedule than the teacher; {remedy}")
    texts = [(each.text_dim, each.text_length) for each in (model, teacher)]
    if texts[0] != texts[1] or {**model.embedding_shapes} != {**teacher.embedding_shapes}:
        (width, rows), (taught_width, taught_rows) = texts
        raise UserError(
            f"{what} reads {rows} text rows of width {width}, and the teacher's text encoder makes "
            f"{taught_rows} of width {taught_width}; {remedy}"
        )


def _starts_from(model: Model) -> str:
    return {"never": "", "optionally": " from text or an image", "always": " from an image"}[
        model.takes_image
    ]


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The first value that differs, in words; a key that one side leaves out has its default."""
    for key in ours:
        if key in theirs and ours[key] != theirs[key]:
            return f"{key} is {ours[key]}, not {theirs[key]}"
    return None


def _latents(model: Model) -> dict[str, int]:
    rules = model.size_rules
    return {"channels": rules.channels, "temporal": rules.temporal, "spatial": rules.spatial}


def _same_path(ours: Interpolant, theirs: Interpolant) -> bool:
    """True if networks see the same x_t at each time and predict the same of it."""
    times = torch.linspace(0, 1, 33)
    return (
        ours.prediction == theirs.prediction
        and torch.equal(ours.alpha(times), theirs.alpha(times))
        and torch.equal(ours.sigma(times), theirs.sigma(times))
        and torch.equal(ours.timestep(times[1:]), theirs.timestep(times[1:]))
    )


def check_same_encoders(role: str, model: Model, teacher: Model) -> None:
    """Compares some numbers of every tensor of the two models' VAEs and text encoders.

    Files of other precisions are told from other weights. A text encoder that is not on this
    machine is not compared, since embeddings may have been made elsewhere.

    Args:
        role: The role that starts from ``model``, for messages.
        model: The role's model.
        teacher: The teacher.

    Raises:
        UserError: the weights differ, or a VAE cannot be read.
    """
    differing = _differing(model.vae_weights(), teacher.vae_weights())
    part = "VAE"
    # Wan's encoder takes 11 GB: one that only the hub has is not downloaded for a comparison.
    here = all(each.source.has("text_encoder") for each in (model, teacher))
    if differing is None and here:
        part = "text encoder"
        try:
            texts = model.text_encoder_weights(), teacher.text_encoder_weights()
        except UserError:
            return
        differing = _differing(*texts)
    if differing is not None:
        raise UserError(
            f"{role}.path: the {part} of {model.path} has other weights than the teacher's "
            f"({differing}); use a model that was trained with the same one"
        )


def _differing(ours: WholeTensors, theirs: WholeTensors) -> str | None:
    """The name of a tensor that differs by more than rounding; None if there is none."""
    held = theirs.header.tensors
    for name, info in ours.header.tensors.items():
        if name not in held:
            continue  # some files have a tied weight twice
        if held[name].shape != info.shape:
            return name
        count = min(_COMPARED, torch.Size(info.shape).numel())
        a, b = (whole.read(name, 0, count).float() for whole in (ours, theirs))
        if float((a - b).abs().max()) > _ROUNDING * float(b.abs().max()):
            return name
    return None
