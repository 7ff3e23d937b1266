"""Names of models and data as an export gives them to others: without paths of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.yaml_loader import dump_tree, read_tree
from lightx2v_sgmd.system.resources import shipped_model

_PATHS: Final = (
    "teacher.path",
    "student.path",
    "fake_score.path",
    "data.prompts",
    "data.embeddings",
    "data.latents",
    "parallel.offload_dir",
    "output.dir",
)
"""Keys of a job that may hold a path; ``teacher.base`` is one too (see ``public_job``)."""


def public_name(name: str) -> str:
    """Returns the last name of a local path; a hub id or a shipped model's name as it is."""
    if shipped_model(name) is not None:
        return name
    local = name.startswith(("/", "~", ".")) or os.path.lexists(name)
    return Path(name).name if local else name


def public_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a method's options with the last name of its vision encoder's folder."""
    found = dict(options)
    for key, value in found.items():
        if isinstance(value, Mapping):
            found[key] = public_options(value)
        elif key == "vision_encoder" and isinstance(value, str):
            found[key] = public_name(value)
    return found


def public_job(job_file: Path, pushed: bool = False) -> str:
    """Returns a job's YAML with the last name of each path.

    Args:
        job_file: The job.
        pushed: True if others get the file, False keeps the path in ``teacher.base``, which a later
            export on this machine opens.
    """
    tree, _ = read_tree(job_file)
    for key in (*_PATHS, "teacher.base") if pushed else _PATHS:
        *sections, last = key.split(".")
        section: Any = tree
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(section.get(last), str):
            section[last] = public_name(section[last])
    teacher = tree.get("teacher")
    if isinstance(teacher, dict) and isinstance(teacher.get("loras"), list):
        teacher["loras"] = [public_name(str(text)) for text in teacher["loras"]]
    if isinstance(tree.get("method"), dict):
        tree["method"] = public_options(tree["method"])
    return dump_tree(tree)
