"""Turns the YAML of LightX2V's trainer into a job of this project.

Every key of theirs is mapped or named as not mapped, with the reason (``keys.py``). Where
a value means something that a student trained here does not do, that is said as a difference.
Defaults that their code has for keys that a file leaves out are written into the job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from lightx2v_sgmd.files.yaml_loader import read_tree
from lightx2v_sgmd.job.checking import Tree
from lightx2v_sgmd.job.from_lightx2v.interpolation import holds_environment, resolve
from lightx2v_sgmd.job.from_lightx2v.keys import (
    LORA_TARGETS,
    METHODS,
    MODELS,
    NEGATIVE_PROMPT,
)
from lightx2v_sgmd.job.from_lightx2v.notes import Note, notes_on
from lightx2v_sgmd.job.from_lightx2v.values import Ours, Theirs
from lightx2v_sgmd.job.inheritance import JobTree
from lightx2v_sgmd.job.loading import job_of_tree
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.errors import UserError, joined

_KEEP_ALL: Final = 10**6
_STEP_SHIFT: Final = "scheduler.time_shift_settings.time_shift_mu"
_DTYPES: Final = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp32": "float32"}
_REQUIRED: Final = (
    "model.name",
    "model.pretrained_model_name_or_path",
    "data.train.data_path",
    "training.method",
    "training.max_train_iters",
    "training.output_dir",
)


@dataclass(frozen=True)
class Converted:
    """A job that was made from a YAML of LightX2V's trainer.

    Attributes:
        job: The job.
        origins: The place that gave each key of the job its value.
        resume: ``auto`` or ``never``, as ``resume.auto_resume`` says.
        notes: The keys that are not mapped.
    """

    job: Job
    origins: dict[str, str]
    resume: Literal["auto", "never"]
    notes: tuple[Note, ...]


def convert(path: str | Path, overrides: Sequence[str] = ()) -> Converted:
    """Makes a job from a YAML of LightX2V's trainer.

    Args:
        path: Their YAML. ``${a.b}`` and ``${oc.env:NAME,default}`` are resolved.
        overrides: Settings of ours that replace those of the result, as after ``--set``.

    Raises:
        UserError: the file is no such YAML, trains something that this project does not, or gives
            a job that is not sound. Messages name the file, the line and their key.
    """
    path = Path(path)
    tree, lines = read_tree(path)
    resolved = resolve(tree, path)
    _check_model_path(tree, resolved, path)
    return convert_tree(resolved, path, lines, overrides)


def _check_model_path(tree: Tree, resolved: Tree, path: Path) -> None:
    """Refuses an id on the hub that holds a variable: a stranger's YAML would send it there."""
    key = "pretrained_model_name_or_path"
    section = resolved.get("model")
    name = section.get(key) if isinstance(section, Mapping) else None
    if not isinstance(name, str) or os.path.isabs(name) or os.path.exists(name):
        return
    if holds_environment(tree, path, "model", key):
        raise UserError(
            f"{path}: model.{key}: a variable of the environment gives no folder that is here, and "
            "none is put into an id on the hub; write the id itself"
        )


def convert_tree(
    tree: Mapping[str, Any],
    path: Path,
    lines: Mapping[str, int] | None = None,
    overrides: Sequence[str] = (),
) -> Converted:
    """Makes a job from the values of such a YAML, resolved; see ``convert``.

    Args:
        tree: The values.
        path: The file that the messages name.
        lines: The line of each key, if known.
        overrides: Settings of ours that replace those of the result.
    """
    theirs = Theirs(tree, path, lines or {})
    missing = [key for key in _REQUIRED if theirs.get(key) is None]
    if missing:
        raise UserError(
            f"{path}: has no {joined(missing)}; give a YAML of LightX2V's trainer, as those of "
            "lightx2v_train/configs/train"
        )
    ours = Ours(theirs)
    _teacher(theirs, ours)
    _roles(theirs, ours)
    _method(theirs, ours)
    _data(theirs, ours)
    _train(theirs, ours)
    _parallel(theirs, ours)
    job, origins = job_of_tree(JobTree(ours.tree, ours.origins), path, overrides)
    resume: Literal["auto", "never"] = "auto" if theirs.get("resume.auto_resume") else "never"
    return Converted(job, origins, resume, tuple(notes_on(theirs)))


def _teacher(theirs: Theirs, ours: Ours) -> None:
    own_path = theirs.get("model.pretrained_model_name_or_path")
    for role in ("", "fake.", "teacher."):
        key = f"model.{role}name"
        name = theirs.get(key, theirs.get("model.name"))
        if name not in MODELS:
            raise theirs.refuse(
                key,
                f"{name!r} is not a teacher of this project; use one of {joined(MODELS)}",
            )
        key = f"model.{role}pretrained_model_name_or_path"
        path = theirs.get(key, own_path)
        if not isinstance(path, str) or path.rstrip("/") != str(own_path).rstrip("/"):
            raise theirs.refuse(
                key,
                f"{path!r} is not {own_path!r}; write the same for student, fake score and teacher",
            )
    ours.set("teacher.path", str(own_path), "model.pretrained_model_name_or_path")
    guidance = "training.teacher.guidance_scale"
    if guidance not in theirs.values and "training.dmd.guidance_scale" in theirs.values:
        guidance = "training.dmd.guidance_scale"
    ours.set("teacher.guidance_scale", theirs.number(guidance, 3.0), guidance)
    ours.set("teacher.negative_prompt", NEGATIVE_PROMPT, "model.name")
    key = "model.running_dtype"
    dtype = theirs.get(key, "bf16")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise theirs.refuse(key, f"{dtype!r} is not a precision of this project; use bf16 or fp32")
    ours.set("teacher.dtype", _DTYPES[dtype], key)


def _roles(theirs: Theirs, ours: Ours) -> None:
    for name, role in (("student", "student"), ("fake", "fake_score")):
        prefix = f"training.{name}."
        train = theirs.get(f"{prefix}train_type", "full")
        ours.set(f"{role}.train", train, f"{prefix}train_type")
        if train == "lora":
            ours.copy(f"{role}.lora.rank", f"{prefix}lora.rank")
            ours.copy(f"{role}.lora.alpha", f"{prefix}lora.alpha")
            _lora_targets(theirs, ours, f"{prefix}lora.target_modules", f"{role}.lora.targets")
        # What the fake score leaves out is the student's there.
        base = "training.student.optimizer."
        for key, default, target in (
            ("learning_rate", 1e-4, "lr"),
            ("weight_decay", 0.01, "weight_decay"),
            ("adam_epsilon", 1e-8, "eps"),
        ):
            given = f"{prefix}optimizer.{key}"
            value = theirs.number(given, theirs.number(f"{base}{key}", default))
            ours.set(f"{role}.optimizer.{target}", value, given)
        given = f"{prefix}optimizer.adam_beta1"
        betas = [
            theirs.number(f"{prefix}optimizer.{key}", theirs.number(f"{base}{key}", default))
            for key, default in (("adam_beta1", 0.9), ("adam_beta2", 0.999))
        ]
        ours.set(f"{role}.optimizer.betas", betas, given)


def _lora_targets(theirs: Theirs, ours: Ours, key: str, target: str) -> None:
    names = theirs.get(key)
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise theirs.refuse(key, f"{names!r} is not a list of names of linear layers")
    found = []
    for name in names:
        attention, _, layer = name.rpartition("_attn.")
        known = {"": "", "self": "attn1.", "cross": "attn2."}
        if attention not in known or layer not in LORA_TARGETS or (attention and "ffn" in layer):
            raise theirs.refuse(
                key,
                f"{name!r} is not a linear layer of a Wan block that is known here; use "
                f"{joined(list(LORA_TARGETS))}, or these after self_attn. or cross_attn.",
            )
        found.append(known[attention] + LORA_TARGETS[layer])
    ours.set(target, found, key)


def _method(theirs: Theirs, ours: Ours) -> None:
    key = "training.method"
    name = theirs.get(key)
    if not isinstance(name, str) or name not in METHODS:
        raise theirs.refuse(
            key, f"{name!r} is not a method of this project; use {joined(list(METHODS))}"
        )
    ours.set("method.name", METHODS[name], key)
    updates = "training.dmd.fake_update_ratio"
    count = theirs.get(updates, 1)
    if METHODS[name] == "dmd2":
        ours.set("method.fake_score_updates", count, updates)
    elif count != 1:
        raise theirs.refuse(updates, f"{count!r} is not 1, as SGMD has it; write 1")
    ours.copy("schedule.base", "training.dmd.denoising_step_list")
    ours.copy("schedule.shift", _STEP_SHIFT, 5.0)


def _data(theirs: Theirs, ours: Ours) -> None:
    key = "data.train.data_path"
    paths = theirs.get(key)
    paths = paths if isinstance(paths, list) else [paths]
    if len(paths) != 1 or not isinstance(paths[0], str):
        raise theirs.refuse(
            key, f"{len(paths)} files, and this project reads one; write all prompts into it"
        )
    # Relative to the current folder there, to the file in a job.
    ours.set("data.prompts", str(Path(paths[0]).absolute()), key)
    ours.set("train.micro_batch", theirs.get("data.train.batch_size", 1), "data.train.batch_size")
    for side, default in (("height", 480), ("width", 832), ("num_frames", 81)):
        ours.copy(f"video.{side}", f"training.dmd.{side}", default)


def _train(theirs: Theirs, ours: Ours) -> None:
    ours.copy("train.iterations", "training.max_train_iters")
    ours.copy("train.accumulation", "training.gradient_accumulation_iters")
    ours.set("train.exit_step_per", "micro_batch", "training.gradient_accumulation_iters")
    ours.copy("train.clip", "training.max_grad_norm", 1.0)
    ours.copy("train.checkpoint_every", "training.save_every_iters")
    ours.copy("train.keep_checkpoints", "training.save_total_limit", _KEEP_ALL)
    ours.copy("train.sample_every", "inference.infer_every_iters")
    ours.set("train.warmup", *_warmup(theirs))
    mu = theirs.get(_STEP_SHIFT, 5.0)
    shift = theirs.number("training.dmd.timestep_shift", mu)
    ours.set("train.score_shift", max(1.0, shift), "training.dmd.timestep_shift")
    for key, default, target in (
        ("training.dmd.min_step_ratio", 0.02, "train.sigma_min"),
        ("training.dmd.max_step_ratio", 0.98, "train.sigma_max"),
    ):
        ours.set(target, int(theirs.number(key, default) * 1000) / 1000, key)
    ours.copy("output.dir", "training.output_dir")


def _warmup(theirs: Theirs) -> tuple[Any, str]:
    """The iterations of the warm-up: their ``constant`` has none, whatever the other key says."""
    key = "training.lr_scheduler"
    kind = theirs.get(key, "constant")
    if kind == "constant":
        return 0, key
    if kind == "constant_with_warmup":
        return theirs.get("training.lr_warmup_iters", 0), "training.lr_warmup_iters"
    raise theirs.refuse(
        key,
        f"{kind!r} is not a learning-rate curve of this project; use constant or "
        "constant_with_warmup, and --set train.decay=N for a fall to zero",
    )


def _parallel(theirs: Theirs, ours: Ours) -> None:
    sharded = bool(theirs.get("distributed.fsdp2.enabled", False))
    ours.set("parallel.strategy", "zero3" if sharded else "local", "distributed.fsdp2.enabled")
    degree = "distributed.sequence_parallel.size"
    if theirs.get("distributed.sequence_parallel.enabled", False):
        ours.set("parallel.sequence", theirs.get(degree, 1), degree)
    checkpointing = "training.gradient_checkpointing"
    ours.set("parallel.gradient_checkpointing", theirs.get(checkpointing, True), checkpointing)
    ours.copy("parallel.timeout_minutes", "distributed.timeout_minutes")
