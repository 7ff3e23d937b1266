"""A LoRA file that somebody names, with its strength: ``FILE`` or ``FILE:STRENGTH``.

Importing this imports no PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lightx2v_sgmd.files.expert_files import expert_of_file
from lightx2v_sgmd.files.lora_folder import DIFFUSERS_FILE, lora_file_in
from lightx2v_sgmd.system.errors import UserError, shortened
from lightx2v_sgmd.untrusted.paths import path_problem

_STRONGEST: Final = 100


@dataclass(frozen=True)
class WeightedLora:
    """A LoRA file and its strength; 1 is the strength that it was trained for.

    A folder that ``export`` or PEFT wrote stands for the file in it.
    """

    path: Path
    strength: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", _lora_file(self.path))

    @property
    def expert(self) -> int | None:
        """The expert that it is for, by its name; None if the name does not tell."""
        return expert_of_file(self.path)

    @classmethod
    def parse(cls, text: str) -> WeightedLora:
        """Reads ``FILE`` or ``FILE:STRENGTH``; a folder that ``export`` wrote is its file.

        Raises:
            UserError: the strength is no number.
        """
        if problem := path_problem(text):
            raise UserError(f"lora: {shortened(text)} {problem}; give a .safetensors file")
        path, colon, strength = text.rpartition(":")
        if not colon or strength.endswith(".safetensors") or Path(text).exists():
            return cls(Path(text))
        try:
            number = float(strength)
            if not -_STRONGEST <= number <= _STRONGEST:
                raise ValueError("the network's output would not be finite")
        except ValueError:
            raise UserError(
                f"lora: {shortened(strength)!r} is not a strength from -{_STRONGEST} to "
                f"{_STRONGEST}; write FILE or FILE:STRENGTH, as x.safetensors:0.8"
            ) from None
        return cls(Path(path), number)


def _lora_file(path: Path) -> Path:
    """The file itself, or that of a folder: exported, written by PEFT, or with one file alone."""
    if not path.is_dir():
        return path
    return lora_file_in(path) or path / DIFFUSERS_FILE
