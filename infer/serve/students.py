"""The student of a job: the served weights, alone or with a LoRA of the server's folder.

One is loaded at a time, so that the memory that was planned for one suffices; a job with another
LoRA than the one before it waits for a load. Imports no PyTorch by itself.
"""

from __future__ import annotations

import gc
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from infer.options import Lora, Options
from lightx2v_sgmd.system.errors import UserError

if TYPE_CHECKING:
    from infer.checks import Checked
    from infer.engine import Student
    from infer.engine_plan import EnginePlan

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MOST: Final = 1000


def named_loras(folder: Path | None) -> dict[str, Path]:
    """The LoRA files of a folder by the names that requests give: a file's name less its suffix.

    Raises:
        UserError: the folder cannot be read, holds no such file or too many, or a file has a name
            that no request could give.
    """
    if folder is None:
        return {}
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
    except OSError as error:
        raise UserError(
            f"--lora-folder: {folder} cannot be read ({error.strerror}); give a folder"
        ) from None
    if not 0 < len(files) <= _MOST:
        raise UserError(
            f"--lora-folder: {folder} holds {len(files)} .safetensors files; give a folder with 1 "
            f"to {_MOST:,}"
        )
    for path in files:
        if not _NAME.fullmatch(path.stem):
            raise UserError(
                f"--lora-folder: {path.name!r} is no name for requests; use letters, digits, "
                "dots, dashes and underscores"
            )
    return {path.stem: path.absolute() for path in files}


class StudentSource(Protocol):
    """What makes the videos of a job."""

    def get(self, lora: str | None) -> Student:
        """The student with a LoRA of that name, or without.

        Raises:
            UserError: its files do not fit or cannot be loaded any more.
        """

    def batch_for(self, size: tuple[int, int, int]) -> int:
        """The number of videos of a size (height, width, frames) that are made together."""


class Students:
    """Loads the served weights, with one LoRA after the other.

    Args:
        weights: The served weights.
        engine: The engine's options; its LoRAs are always applied.
        loras: The files of LoRAs by name.
        batch: Videos that memory is planned for.
    """

    def __init__(self, weights: Path, engine: Options, loras: dict[str, Path], batch: int) -> None:
        self._weights, self._engine, self._loras, self._batch = weights, engine, loras, batch
        self._loaded: Student | None = None
        self._name: str | None = None

    def check(self) -> Checked:
        """Checks the weights, and every LoRA against them, and plans memory; loads nothing.

        Returns:
            The weights without a LoRA of the folder.

        Raises:
            UserError: a file does not fit or was distilled for other steps, or the memory does not
                suffice.
        """
        alone = self._check(None)
        self._plan(alone, None)
        for name in self._loras:
            if self._check(name).schedule != alone.schedule:
                raise UserError(
                    f"--lora-folder: {name} was distilled for other steps than the weights; serve "
                    "it by itself with --lora"
                )
        return alone

    def _check(self, lora: str | None) -> Checked:
        from infer.checks import check_student

        engine = self._options(lora)
        return check_student(
            self._weights,
            engine.assume_schedule,
            engine.loras,
            engine.base,
            engine.skip_image_layers,
        )

    def _options(self, lora: str | None) -> Options:
        if lora is None:
            return self._engine
        return replace(self._engine, loras=(*self._engine.loras, Lora(self._loras[lora])))

    def get(self, lora: str | None) -> Student:
        """The student with that LoRA; another one is dropped first."""
        if self._loaded is not None and self._name == lora:
            return self._loaded
        from infer.engine import Student

        if lora is not None and lora not in self._loras:
            raise UserError(f"lora: {lora!r} is not in the server's folder any more")
        self._loaded = None
        gc.collect()
        checked = self._check(lora)
        self._loaded, self._name = Student(checked, self._plan(checked, lora)), lora
        return self._loaded

    def _plan(self, checked: Checked, lora: str | None) -> EnginePlan:
        from infer.engine_plan import make_plan

        video = checked.video
        return make_plan(
            checked.model,
            self._options(lora),
            (video.height, video.width, video.num_frames) if video else None,
            self._batch,
            teacher_dtype=checked.teacher_dtype,
        )

    def batch_for(self, size: tuple[int, int, int]) -> int:
        """What the loaded student takes together; 1 before one is loaded."""
        return 1 if self._loaded is None else self._loaded.batch_for(size)
