"""The rules of a job over single values and over several of them; ``checking`` applies them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lightx2v_sgmd.schedule import evenly_spaced
from lightx2v_sgmd.system.errors import joined
from lightx2v_sgmd.untrusted.paths import path_problem


@dataclass(frozen=True)
class Rule:
    """A rule over values: ``problem(*values)`` is None where they are right.

    A problem is reported under the first key.
    """

    keys: tuple[str, ...]
    problem: Callable[..., str | None]


_SHIFTS: Final = {8.0: "Wan", 5.0: "Wan", 3.0: "SD3", 1.0: "CogVideoX, SDXL"}
"""The flow shifts of students by family; ``distill.model_checks`` compares with the teacher's."""


def _known_shift(shift: float | None) -> str | None:
    """The shift is one of a family's students; see ``schedule.Schedule``."""
    if shift is None or shift in _SHIFTS:
        return None
    known = joined([f"{value:g} ({family})" for value, family in _SHIFTS.items()])
    return f"{shift:g} is no shift that engine and exported weights run; use one of {known}"


def _even_base(base: list[float]) -> str | None:
    """The steps are evenly spaced before the shift; see ``schedule.Schedule``."""
    if base and evenly_spaced(base):
        return None
    steps = joined([f"{timestep:g}" for timestep in base])
    return (
        f"[{steps}] is no list of timesteps that engine and exported weights run; use one that "
        "falls evenly from 1000, such as [1000, 750, 500, 250]"
    )


def _ordered_sigmas(low: float, high: float) -> str | None:
    if low < high:
        return None
    return f"{low:g} is not below train.sigma_max, which is {high:g}; lower it"


def _pixels(size: int) -> str | None:
    if size % 16 == 0:
        return None
    down, up = size // 16 * 16, size // 16 * 16 + 16
    return f"{size} is not divisible by 16 (VAE 8 times patch 2); use {down} or {up}"


def _frames(count: int | None) -> str | None:
    if count is None or count % 4 == 1:
        return None
    down, up = (count - 1) // 4 * 4 + 1, (count - 1) // 4 * 4 + 5
    return f"{count} is not 4k + 1 (the VAE keeps one frame, then takes four); use {down} or {up}"


def _sequence(degree: int, strategy: str) -> str | None:
    if degree == 1 or strategy == "zero3":
        return None
    return f"{degree} needs parallel.strategy zero3, not {strategy}; use 1 or change the strategy"


def _offload(offload: str, strategy: str) -> str | None:
    if offload == "none" or strategy == "zero3":
        return None
    return (
        f"{offload} needs parallel.strategy zero3, not {strategy}; use none or change the strategy"
    )


def _quantize(kind: str, strategy: str) -> str | None:
    if kind == "none" or strategy == "local":
        return None
    return f"{kind} needs parallel.strategy local, not {strategy}; use none or change the strategy"


def _offload_dir(directory: str | None, offload: str) -> str | None:
    if offload == "nvme" and directory is None:
        return "is missing, but parallel.offload is nvme; name a folder on a fast local disk"
    if offload != "nvme" and directory is not None:
        return f"is for parallel.offload nvme, not {offload}; leave it out (null)"
    return None


def _path(path: str | None) -> str | None:
    problem = None if path is None else path_problem(path)
    return None if problem is None else f"{problem}; give another"


def _paths(paths: list[str]) -> str | None:
    return next((problem for path in paths if (problem := _path(path))), None)


def _lora_settings(lora: Mapping[str, Any] | None, train: str) -> str | None:
    if lora is None or train == "lora":
        return None
    return f"are for train: lora, not {train}; leave them out (null), or set train: lora"


Rules = tuple[Rule, ...]

RULES: Rules = (
    Rule(("schedule.shift",), _known_shift),
    Rule(("schedule.base",), _even_base),
    Rule(("train.sigma_min", "train.sigma_max"), _ordered_sigmas),
    Rule(("video.height",), _pixels),
    Rule(("video.width",), _pixels),
    Rule(("video.num_frames",), _frames),
    Rule(("parallel.sequence", "parallel.strategy"), _sequence),
    Rule(("parallel.offload", "parallel.strategy"), _offload),
    Rule(("parallel.offload_dir", "parallel.offload"), _offload_dir),
    Rule(("teacher.quantize", "parallel.strategy"), _quantize),
    Rule(("teacher.path",), _path),
    Rule(("teacher.base",), _path),
    Rule(("teacher.loras",), _paths),
    Rule(("student.path",), _path),
    Rule(("fake_score.path",), _path),
    Rule(("data.prompts",), _path),
    Rule(("data.embeddings",), _path),
    Rule(("data.latents",), _path),
    Rule(("output.dir",), _path),
    Rule(("student.lora", "student.train"), _lora_settings),
    Rule(("fake_score.lora", "fake_score.train"), _lora_settings),
)
