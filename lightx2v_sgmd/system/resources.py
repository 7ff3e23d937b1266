"""Finds the files that come with the package, installed or in a checkout."""

from __future__ import annotations

from pathlib import Path

from lightx2v_sgmd.system.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


def configs_folder() -> Path:
    """The folder of the shipped jobs: ``configs/`` of the checkout, or the installed copy of it."""
    installed = _PACKAGE / "_configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def shipped_model(name: str) -> Path | None:
    """The folder of the model that ships with the package under a name; None if there is none."""
    models = (path.parent for path in (_PACKAGE / "assets").glob("*/model_index.json"))
    return next((folder for folder in models if folder.name == name), None)


def shipped_jobs() -> list[str]:
    """The names of the shipped jobs, such as ``sprites_sgmd.yaml``."""
    return sorted(path.name for path in configs_folder().glob("*.yaml"))


def config_path(name: str) -> Path:
    """The path of a shipped file, such as ``sprites_sgmd.yaml`` or ``prompts/examples.txt``.

    Raises:
        UserError: no shipped file has that name.
    """
    path = configs_folder() / name
    if not path.is_file():
        raise UserError(f"{name}: is not a shipped job; use one of {', '.join(shipped_jobs())}")
    return path
