from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lightx2v_sgmd.manifest import Manifest, Video
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.tensorfiles import schedule_metadata
from tests.tiny import WEIGHTS, make_tiny_wan


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
        video=Video(32, 32, 9, 8.0),
        step=7,
        ema=False,
        dtype="fp32",
    )


def make_student(folder: Path) -> Path:
    """A tiny random student as an export looks, in float32."""
    make_tiny_wan(folder)
    schedule = Schedule()
    write_metadata(folder, schedule_metadata(schedule))
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        **schedule.diffusers_config(),
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    manifest_of(schedule).write(folder)
    return folder


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return make_student(tmp_path / "student")


@pytest.fixture(scope="session")
def shared_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that only read."""
    return make_student(tmp_path_factory.mktemp("shared") / "student")
