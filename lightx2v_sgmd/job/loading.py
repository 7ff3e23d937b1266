"""Reads a job: the YAML with what it is based on, overrides, every check, and absolute paths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lightx2v_sgmd.job.checking import Shape, apply_override, checked, known_keys
from lightx2v_sgmd.job.inheritance import DEFAULT_METHOD, JobTree, read_job_tree
from lightx2v_sgmd.job.rules import RULES
from lightx2v_sgmd.job.schema import LATENTS, Data, Job, Teacher
from lightx2v_sgmd.methods import SGMD, Method, method_class
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path, configs_folder, shipped_jobs, shipped_model
from lightx2v_sgmd.system.user_paths import expanded


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Reads and checks a job.

    Args:
        path: The YAML file. It may begin with ``base: OTHER.yaml`` and state what differs.
        overrides: ``a.b=value`` settings that replace the file's, the value in YAML.

    Returns:
        The job. Paths in ``data`` and ``teacher.loras`` are absolute: relative to the file that
        states them, or to the current folder if an override does.

    Raises:
        UserError: with a line for each mistake.
    """
    return load_job_with_origins(path, overrides)[0]


def load_job_with_origins(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[Job, dict[str, str]]:
    """Reads and checks a job as ``load_job`` does.

    Returns:
        The job, and the place that gave each key its value (``FILE:LINE`` or ``--set``) by its
        dotted path; a key with its default has none.
    """
    path = Path(path)
    try:
        read = read_job_tree(path)
    except UserError as error:
        raise UserError(_with_shipped_job(error, path)) from None
    return job_of_tree(read, path, overrides)


def job_of_tree(
    read: JobTree, path: Path, overrides: Sequence[str] = ()
) -> tuple[Job, dict[str, str]]:
    """Checks a job that was read, and changes it by the overrides.

    Args:
        read: The values, and where each is from.
        path: The file that the messages name, and whose folder relative paths are in.
        overrides: ``a.b=value`` settings that replace the file's.

    Returns:
        As ``load_job_with_origins``, which also raises the same.
    """
    tree, origins, names = read.tree, read.origins, {"method": read.method_name}
    folders = {key: read.folders.get(key, path.parent) for key in _PATHS}
    for override in overrides:
        key = apply_override(tree, override)
        origins = {k: v for k, v in origins.items() if not k.startswith(f"{key}.")}
        origins[key] = "--set"
        folders.update({path_key: Path() for path_key in _PATHS if path_key.startswith(key)})
    _expand_paths(tree)
    job = checked(Job, tree, origins, str(path), RULES, {"method": _method_class}, names)
    if problem := _latents_problem(job.method, job.data) or _stages_problem(job):
        raise UserError(f"{path}: {problem}")
    job = replace(
        job,
        teacher=_with_absolute_loras(job.teacher, folders["teacher.loras"]),
        data=_resolved(job.data, folders),
        student=replace(job.student, lora=job.student.adapters),
        fake_score=replace(job.fake_score, lora=job.fake_score.adapters),
    )
    try:
        _ = job.teacher.lora_files
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return job, origins


def job_keys(method: str = "sgmd") -> list[str]:
    """Every key of a job with that method, as dotted paths."""
    return known_keys(Shape(Job, {"method": method_class(method)}), Job)


def _latents_problem(method: Method, data: Data) -> str | None:
    """The problem if the method and the latents of a job do not go together."""
    wanted = method.reads_latents
    if wanted is None:
        if data.prompts == LATENTS and data.latents is None:
            return "data.latents: is missing, but data.prompts says latents; give the folder"
        return None
    if data.latents is None or data.prompts != LATENTS:
        what = {"videos": "encoded videos", "pairs": "the teacher's ODE pairs"}[wanted]
        instead = ", or leave its GAN term out (gan_weight: 0)" if wanted == "videos" else ""
        return (
            f"data.latents: {method.name} reads {what} and their captions; give their folder here "
            f"and data.prompts: latents{instead}"
        )
    return None


def _stages_problem(job: Job) -> str | None:
    """The problem if a method's first stage leaves no iterations to the others."""
    stage = job.method.stages[0]
    if stage.iterations is None or stage.iterations < job.train.iterations:
        return None
    return (
        f"method.{stage.option}: {stage.iterations} leaves none of the {job.train.iterations} "
        "train.iterations to what follows it; lower it, or raise train.iterations"
    )


def _method_class(section: Any) -> type:
    """The class that a job's ``method`` section describes."""
    name = section.get("name", DEFAULT_METHOD) if isinstance(section, dict) else DEFAULT_METHOD
    return method_class(name) if isinstance(name, str) else SGMD


_USER_PATHS = {
    "teacher": ("path", "base"),
    "student": ("path",),
    "fake_score": ("path",),
    "data": ("prompts", "embeddings", "latents"),
    "method": ("vision_encoder",),
    "parallel": ("offload_dir",),
    "output": ("dir",),
}
"""The keys of paths, by section; ``teacher.loras`` is a list of them."""
_OR_HUB_IDS = ("teacher", "student", "fake_score")
"""The sections whose paths may also be ids on the hub."""


def _expand_paths(tree: Any) -> None:
    """Replaces ``~`` and variables of the environment in the paths of a job's values.

    An id on the hub gets none: a stranger's job would send a secret of the environment there.
    """
    for name, keys in _USER_PATHS.items():
        section = tree.get(name) if isinstance(tree, dict) else None
        if not isinstance(section, dict):
            continue
        for key in keys:
            if isinstance(section.get(key), str):
                path = Path(expanded(section[key]))
                if name not in _OR_HUB_IDS or path.is_absolute() or os.path.exists(path):
                    section[key] = expanded(section[key])
        loras = section.get("loras")
        if isinstance(loras, list):
            section["loras"] = [expanded(x) if isinstance(x, str) else x for x in loras]


_PATHS = ("teacher.loras", "data.prompts", "data.embeddings", "data.latents")


def _with_absolute_loras(teacher: Teacher, folder: Path) -> Teacher:
    loras = [str((folder / Path(text).expanduser()).absolute()) for text in teacher.loras]
    return replace(teacher, loras=tuple(loras))


def _resolved(data: Data, folders: dict[str, Path]) -> Data:
    """The data with absolute paths; ``folders`` has the folder that each is relative to."""

    def absolute(key: str, path: str | Path) -> Path:
        return (folders[key] / Path(path).expanduser()).absolute()

    prompts, embeddings, latents = data.prompts, data.embeddings, data.latents
    if prompts != LATENTS and shipped_model(prompts) is None:
        prompts = str(absolute("data.prompts", prompts))
    if embeddings is not None:
        embeddings = absolute("data.embeddings", embeddings)
    if latents is not None:
        latents = absolute("data.latents", latents)
    return Data(prompts=prompts, embeddings=embeddings, latents=latents)


def _with_shipped_job(error: UserError, path: Path) -> str:
    """The message; for a file that does not exist, with the shipped job that is meant, or all."""
    if path.exists():
        return str(error)
    near = get_close_matches(path.name, shipped_jobs(), n=1)
    hint = (
        f"did you mean {config_path(near[0])}?"
        if near
        else f"use one of the jobs in {configs_folder()}"
    )
    return f"{path}: no such file; {hint}"
