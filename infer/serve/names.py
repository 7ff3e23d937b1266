"""The names that requests give to weights and LoRAs, and the files behind them. No PyTorch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.user_paths import expanded

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MOST: Final = 1000
_MOST_WEIGHTS: Final = 100


def named_weights(given: Sequence[str | Path], folder: Path | None = None) -> dict[str, Path]:
    """The served weights by the names that requests give.

    Args:
        given: Weights, each as ``PATH`` or ``NAME=PATH``. A path's name is its last part.
        folder: A folder; each folder and each ``.safetensors`` file in it is served too.

    Raises:
        UserError: there are none or too many, two have one name, or the folder cannot be read.
    """
    pairs = [_pair(str(one)) for one in given]
    pairs += [(_name_of(path), path) for path in _inside(folder)] if folder is not None else []
    if not 0 < len(pairs) <= _MOST_WEIGHTS:
        empty = folder is not None and not pairs
        where = f"--weights-folder: {folder} holds none; " if empty else "--weights: "
        raise UserError(
            f"{where}{len(pairs)} weights are given; give 1 to {_MOST_WEIGHTS}, such as "
            "--weights student"
        )
    named: dict[str, Path] = {}
    for name, path in pairs:
        if name in named:
            raise UserError(
                f"--weights: {named[name]} and {path} have the same name {name!r}; give one of "
                f"them another, as --weights NAME={path}"
            )
        named[name] = path
    return named


def named_loras(folder: Path | None) -> dict[str, Path]:
    """The LoRA files of a folder by the names that requests give: a file's name less its suffix.

    Raises:
        UserError: the folder cannot be read, holds no such file or too many, or a file has a name
            that no request could give.
    """
    if folder is None:
        return {}
    files = [path for path in _listed("--lora-folder", folder) if path.suffix == ".safetensors"]
    if not 0 < len(files) <= _MOST:
        raise UserError(
            f"--lora-folder: {folder} holds {len(files)} .safetensors files; give a folder with 1 "
            f"to {_MOST:,}"
        )
    for path in files:
        if not _NAME.fullmatch(path.stem):
            raise UserError(
                f"--lora-folder: {path.name!r} is not a name for requests; use letters, digits, "
                "dots, dashes and underscores"
            )
    return {path.stem: path.absolute() for path in files}


def _pair(text: str) -> tuple[str, Path]:
    """Name and path; a path that exists may have a ``=`` in it."""
    name, equals, rest = text.partition("=")
    if equals and rest and _NAME.fullmatch(name) and not Path(text).exists():
        return name, Path(expanded(rest))  # shells expand no ~ after an equals sign
    return _name_of(Path(text)), Path(text)


def _name_of(path: Path) -> str:
    return path.resolve().name or str(path)


def _inside(folder: Path) -> Iterable[Path]:
    for path in _listed("--weights-folder", folder):
        if not path.name.startswith(".") and (path.is_dir() or path.suffix == ".safetensors"):
            yield path


def _listed(option: str, folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"{option}: {folder} cannot be read ({error.strerror}); give a folder"
        ) from None
