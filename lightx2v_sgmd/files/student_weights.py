"""A checkpoint's student in files: one, or of a large network several, which ranks write together.

    student.safetensors
    student-00001-of-00012.safetensors ... and student.safetensors.index.json, as the hub has them

Adapters are always one file, for so they are loaded elsewhere. If the model has two experts, the
second one is ``student_2``, in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from lightx2v_sgmd.files.tensors.safetensors_files import weight_files

MOST: Final = 5_000_000_000
"""Bytes of a file, if there are ranks enough for more of them."""


MOST_EXPERTS: Final = 2
"""The largest number of experts of a model."""


def stem(averaged: bool, expert: int = 0) -> str:
    """The beginning of the files' names: ``student``, ``student_ema``, ``student_2``.

    Args:
        averaged: True for the moving average, False for the last weights.
        expert: The expert's index.
    """
    return "student" + (f"_{expert + 1}" if expert else "") + ("_ema" if averaged else "")


@dataclass(frozen=True)
class WeightFile:
    """One file of a network in float32.

    Attributes:
        name: Name of the file.
        shapes: The shapes of its tensors, in their order.
        rank: The rank that writes it.
    """

    name: str
    shapes: Mapping[str, Sequence[int]]
    rank: int


def divided(
    beginning: str,
    shapes: Mapping[str, Sequence[int]],
    ranks: int,
    first: int = 0,
    most: int = MOST,
) -> list[WeightFile]:
    """Files of about the same size, at most one a rank; neighbouring weights are in different ones.

    So all ranks have something to write from the first weights on.

    Args:
        beginning: The beginning of the names.
        shapes: The shapes of all weights, in the order in which they come.
        ranks: Number of ranks that may write.
        first: The rank that writes the first file; the next writes the second.
        most: The most bytes of a file.
    """
    bytes_of = {name: 4 * prod(shape) for name, shape in shapes.items()}
    count = file_count(sum(bytes_of.values()), ranks, most)
    if count == 1:
        return [WeightFile(f"{beginning}.safetensors", shapes, first % ranks)]
    parts: list[dict[str, Sequence[int]]] = [{} for _ in range(count)]
    filled = [0] * count
    for name, shape in shapes.items():
        least = filled.index(min(filled))
        parts[least][name] = shape
        filled[least] += bytes_of[name]
    return [
        WeightFile(
            f"{beginning}-{number + 1:05d}-of-{count:05d}.safetensors",
            part,
            (first + number) % ranks,
        )
        for number, part in enumerate(parts)
    ]


def file_count(size: int, ranks: int, most: int = MOST) -> int:
    """The number of files into which so many bytes of weights are divided on so many ranks."""
    return max(1, min(ranks, -(-size // most)))


def index(beginning: str, files: Sequence[WeightFile]) -> tuple[str, str]:
    """Name and text of the file that says which weight is where."""
    total = sum(4 * prod(shape) for file in files for shape in file.shapes.values())
    places = {name: file.name for file in files for name in file.shapes}
    content = {"metadata": {"total_size": total}, "weight_map": places}
    return f"{beginning}.safetensors.index.json", json.dumps(
        content, indent=2, sort_keys=True
    ) + "\n"


def student_files(checkpoint: Path, averaged: bool = False, expert: int = 0) -> list[Path]:
    """The files of a checkpoint's student, or of its moving average.

    Args:
        checkpoint: The folder.
        averaged: True for the moving average.
        expert: The expert's index.

    Raises:
        UserError: they are not there.
    """
    return weight_files(checkpoint, stem(averaged, expert))


def has_average(checkpoint: Path) -> bool:
    """True if a checkpoint holds a moving average."""
    return any(checkpoint.glob(f"{stem(True)}.safetensors*"))
