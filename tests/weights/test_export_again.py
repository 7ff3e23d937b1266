"""Everything that ``export`` writes runs in the engine, and can be exported again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infer import Student
from infer.options import Lora
from lightx2v_sgmd.files.lora_folder import lora_file_in
from tests.students import load_student
from tests.tiny import make_tiny_wan
from tests.weights.conftest import write_checkpoint
from weights import export
from weights.formats.registry import FORMATS
from weights.io.lora_names import NAMES
from weights.opening import open_source

pytestmark = pytest.mark.slow

EXACT = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2, "fp8": 0.2, "fp8-legacy": 0.2}
"""How far off the latents may be, by precision."""
SMALL = "60KB"
CASES: list[dict[str, Any]] = [
    *({"format": f.name, "dtype": d} for f in FORMATS.values() for d in f.dtypes if d != "fp16"),
    *({"format": name, "dtype": "fp16"} for name in ("diffusers", "comfyui")),
    {"format": "diffusers", "dtype": "fp32", "max_shard_size": SMALL},
    *({"format": "wan", "dtype": d, "max_shard_size": SMALL} for d in ("fp32", "fp8")),
    *({"format": "lora", "dtype": "fp32", "names": n} for n in NAMES if n != "portable"),
    {"format": "lora", "dtype": "fp32", "only": "blocks"},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("again")
    write_checkpoint(base / "run", make_tiny_wan(base / "teacher"), 20)
    return base / "run"


@pytest.fixture(scope="module")
def exact(run: Path) -> Tensor:
    """The latents of the student as it was trained."""
    out = run.parent / "exact"
    return latents(export(run, "diffusers", out, dtype="fp32", quiet=True))


def latents(folder: Path, teacher: Path | None = None) -> Tensor:
    """The engine's latents of a folder of weights, or of adapters beside their teacher."""
    loras = () if teacher is None else (Lora(folder),)
    return generated(load_student(folder if teacher is None else teacher, loras=loras))


def generated(student: Student) -> Tensor:
    made = student.generate(["a red circle"], height=32, width=32, num_frames=5, decode=False)
    return made.latents


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def weights_of(folder: Path) -> Callable[[str], Tensor]:
    tensors = open_source(folder, ema=True).tensors
    return lambda name: tensors.read(name).float()


@pytest.mark.parametrize("options", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_it_runs_and_can_be_exported_again(
    options: dict[str, Any], run: Path, exact: Tensor, tmp_path: Path
) -> None:
    teacher = run.parent / "teacher"
    is_lora = options["format"] == "lora"
    rank = 1000 if is_lora else None
    out = export(run, out=tmp_path / "out", quiet=True, rank=rank, **options)
    if "max_shard_size" in options:
        assert len(list(out.rglob("diffusion_pytorch_model-*.safetensors"))) > 1
    made = latents(out, teacher if is_lora else None)
    assert made.isfinite().all()
    if not (is_lora and (options.get("only") or options.get("names"))):  # these leave out norms
        assert relative(made, exact) < EXACT[options["dtype"]]
    else:
        untrained = load_student(teacher, assume_schedule="sgmd")
        assert 0 < relative(made, exact) < relative(generated(untrained), exact)

    again = export(out, "diffusers", tmp_path / "again", dtype="fp32", quiet=True)
    first, second = weights_of(out), weights_of(again)
    for name in open_source(out, ema=True).tensors.shapes:
        assert torch.equal(first(name), second(name)), name
    assert relative(latents(again), made) < 1e-5
    if is_lora and not options.get("names"):
        third = export(out, "lora", tmp_path / "third", quiet=True)
        assert lora_file_in(third) is not None
        assert relative(latents(third, teacher), made) < 1e-2  # rounded to bf16
