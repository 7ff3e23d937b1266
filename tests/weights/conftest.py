"""Checkpoints as training leaves them, and exports of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import AdapterSettings, Role
from lightx2v_sgmd.networks.adapters import adapter_metadata, trained_shapes
from lightx2v_sgmd.outputs import sha256_file
from lightx2v_sgmd.schedule import Schedule
from tests.tiny import make_tiny_wan
from weights import export

WAN = "diffusion_pytorch_model.safetensors"
JOB = """
teacher: {{path: {teacher}, guidance_scale: 3.0}}
method: {{name: sgmd, lambda: 0.1}}
schedule: {{shift: 8.0, solver: euler}}
data: {{prompts: sprites}}
video: {{height: 32, width: 32, num_frames: 9}}
train: {{iterations: 20}}
output: {{dir: {run}}}
"""


def student_tensors(teacher: Path, seed: int) -> dict[str, Tensor]:
    """The teacher's tensors, moved as training moves them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = open_wan(teacher).load_transformer().state_dict()
    return {k: v + 0.01 * torch.randn(v.shape, generator=generator) for k, v in tensors.items()}


def write_checkpoint(run: Path, teacher: Path, step: int, ema: bool = True) -> Path:
    """A checkpoint as training leaves it."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    metadata = schedule_metadata(Schedule())
    save_file(student_tensors(teacher, step), folder / "student.safetensors", metadata)
    if ema:
        tensors = student_tensors(teacher, step + 1000)
        save_file(tensors, folder / "student_ema.safetensors", metadata)
    (folder / "job.yaml").write_text(JOB.format(teacher=teacher, run=run))
    (folder / "trainer.json").write_text(json.dumps({"step": step}))
    write_manifest(folder)
    return folder


def write_lora_checkpoint(run: Path, teacher: Path, step: int, lora: AdapterSettings) -> Path:
    """A checkpoint of adapters, random ones, with a moving average, as training leaves it."""
    folder = write_checkpoint(run, teacher, step, ema=False)
    shapes = trained_shapes(open_wan(teacher), lora)
    metadata = schedule_metadata(Schedule()) | adapter_metadata(lora)
    for seed, name in enumerate(("student", "student_ema")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {n: 0.1 * torch.randn(shape, generator=generator) for n, shape in shapes.items()}
        save_file(tensors, folder / f"{name}.safetensors", metadata)
    job = load_job(folder / "job.yaml")
    job = replace(job, student=Role(train="lora", lora=lora))
    (folder / "job.yaml").write_text(job.to_yaml())
    write_manifest(folder)
    return folder


def do_export(source: Path, out: Path, **options: Any) -> Path:
    return export(source, "diffusers", out, **{"dtype": "fp32", "quiet": True, **options})


def write_manifest(folder: Path) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "files": files}))


def flip_a_byte(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return make_tiny_wan(tmp_path / "teacher")


@pytest.fixture
def run(tmp_path: Path, teacher: Path) -> Path:
    """A run with two checkpoints, each with a moving average."""
    folder = tmp_path / "run"
    write_checkpoint(folder, teacher, 10)
    write_checkpoint(folder, teacher, 20)
    return folder


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Exports of one run, each made once; not to be written to."""
    base = tmp_path_factory.mktemp("exports")
    teacher = make_tiny_wan(base / "teacher")
    write_checkpoint(base / "run", teacher, 20)
    (base / "run" / "metrics.json").write_text(json.dumps({"student": {"motion": 1.004}, "n": 3}))

    class Exports:
        folder, run = base, base / "run"
        teacher_folder = teacher

        def __call__(self, format: str, dtype: str | None = None, source: str = "run") -> Path:
            out = base / f"{source}_{format}_{dtype}"
            if not out.exists():
                export(base / source, format, out, dtype=dtype, quiet=True)
            return out

    return Exports()
