"""Students for tests, on the CPU unless a test names another device.

The engine's own default is the GPU where there is one, in bfloat16 and compiled, which is not what
tests compare with float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

import infer
from infer import GenerateOptions, Options, Outcome, Student
from lightx2v_sgmd.files.manifest import Manifest, VideoFacts
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.schedule import Schedule
from tests.tiny import WEIGHTS, Kind, make_tiny_wan


def load_student(path: str | Path, quiet: bool = True, **options: Any) -> Student:
    """As ``infer.load_student``, by default on the CPU."""
    return infer.load_student(path, Options(**{"device": "cpu", **options}), quiet=quiet)


def generate_files(
    weights: str | Path,
    prompts: Any,
    out: str | Path,
    cancel: Any = None,
    quiet: bool = False,
    **options: Any,
) -> Outcome:
    """As ``infer.generate_files``, with the options as keywords."""
    chosen = GenerateOptions(**options)
    return infer.generate_files(weights, prompts, out, chosen, cancel=cancel, quiet=quiet)


def generate(
    weights: str | Path, prompts: Any, out: str | Path, quiet: bool = False, **options: Any
) -> list[Path]:
    """As ``infer.generate``, with the options as keywords."""
    return infer.generate(weights, prompts, out, GenerateOptions(**options), quiet=quiet)


def write_metadata(folder: Path, metadata: dict[str, str]) -> None:
    """Saves the transformer again with other safetensors metadata."""
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors, folder / WEIGHTS, metadata=metadata)


def manifest_of(schedule: Schedule) -> Manifest:
    return Manifest(
        method={"name": "sgmd", "options": {"lambda": 0.1}},
        teacher="tiny",
        schedule=schedule,
        guidance_scale=3.0,
        video=VideoFacts(32, 32, 9, 8.0),
        step=7,
        ema=False,
        dtype="fp32",
    )


def make_student(folder: Path, seed: int = 0, heads: int = 4, kind: Kind = "text") -> Path:
    """A tiny random student as an export looks, in float32."""
    return as_student(make_tiny_wan(folder, seed, heads, kind=kind), Schedule())


def as_student(folder: Path, schedule: Schedule) -> Path:
    """Adds to a tiny model what an export says of its student: the steps and the manifest."""
    write_metadata(folder, schedule_metadata(schedule))
    if schedule.solver == "euler":
        _write_scheduler(folder, schedule)
    manifest_of(schedule).write(folder)
    return folder


def _write_scheduler(folder: Path, schedule: Schedule) -> None:
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        **schedule.diffusers_config(),
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
