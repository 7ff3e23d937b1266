"""Reads the result files that the ``vbench`` package writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.measures.vbench import DIMENSIONS
from lightx2v_sgmd.system.errors import UserError, shortened
from lightx2v_sgmd.untrusted.json_text import MEASURED, read_json_object

PATTERN: Final = "*_eval_results.json"


@dataclass(frozen=True)
class Score:
    """The score of a dimension.

    Attributes:
        value: From 0 to 1.
        videos: The number of videos that it was measured on; None if the file does not say.
        file: The file that it was read from.
    """

    value: float
    videos: int | None
    file: Path


def find_results(places: Sequence[Path]) -> list[Path]:
    """The result files in folders, and files that are named.

    Raises:
        UserError: a place does not exist, or has none.
    """
    found: list[Path] = []
    for place in places:
        if place.is_file():
            found.append(place)
            continue
        here = sorted(place.rglob(PATTERN)) if place.is_dir() else []
        if not here:
            raise UserError(
                f"--vbench-results: {place} has no {PATTERN}; name the folder that vbench wrote to"
            )
        found += here
    return found


def read_results(files: Sequence[Path]) -> dict[str, Score]:
    """The scores of dimensions.

    Args:
        files: Each is ``{DIMENSION: [SCORE, [{"video_path": ...}, ...]]}``.

    Raises:
        UserError: a file is something else, or two files have one dimension.
    """
    found: dict[str, Score] = {}
    for file in files:
        content = read_json_object(file, MEASURED, "name a result file of vbench")
        for name, value in content.items():
            if name not in DIMENSIONS:
                raise UserError(
                    f"{file}: {shortened(name)!r} is not a dimension of VBench's 16; leave the "
                    "file out"
                )
            if name in found:
                raise UserError(
                    f"{file}: has {name}, and so has {found[name].file}; keep one of them"
                )
            found[name] = _score(file, name, value)
    return {name: found[name] for name in DIMENSIONS if name in found}


def _score(file: Path, name: str, value: Any) -> Score:
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, bool) or not isinstance(first, int | float) or not math.isfinite(first):
        raise UserError(f"{file}: {name} has no number as its score; measure it again")
    if not 0 <= first <= 1:
        raise UserError(
            f"{file}: {name} is {first:g}, but VBench's scores are from 0 to 1; divide percents by "
            "100"
        )
    listed = value[1] if isinstance(value, list) and len(value) > 1 else None
    return Score(float(first), len(listed) if isinstance(listed, list) else None, file)
