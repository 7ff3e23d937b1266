"""Exports for ComfyUI: one file that its loader takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.weights import reading
from tests.weights.conftest import student_tensors
from weights.formats.comfyui import base_weights


def test_comfyui_is_one_file_that_its_loader_takes(exports: Any) -> None:
    out = exports("comfyui")
    (file,) = out.glob("*.safetensors")
    assert file.name == "teacher_sgmd_4step_bf16.safetensors"
    header = reading.metadata_of(file)
    assert header["modelspec.title"] == "teacher, 4-step student by sgmd"
    stored = load_file(file)
    assert all("diffusion_model." in name for name in stored)
    loaded = reading.comfyui_loads(stored)
    expected = reading.to_original(student_tensors(exports.teacher_folder, 1020))
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name].bfloat16()), name


@pytest.mark.parametrize(
    ("image", "width", "layers", "file", "pair"),
    [
        ("never", 1536, 30, "wan2.1_t2v_1.3B_bf16", "mine_low_noise"),
        ("never", 5120, 40, "wan2.1_t2v_14B_bf16", "wan2.2_t2v_low_noise_14B_fp16"),
        ("always", 5120, 40, "wan2.1_i2v_480p_14B_bf16", "wan2.2_i2v_low_noise_14B_fp16"),
        ("never", 48, 2, "mine", "mine_low_noise"),
    ],
)
def test_the_teachers_file_follows_from_its_size(
    image: str, width: int, layers: int, file: str, pair: str
) -> None:
    model = SimpleNamespace(takes_image=image, width=width, num_blocks=layers)
    about = SimpleNamespace(teacher="me/Mine-Diffusers", base="me/Mine-Diffusers")
    source = SimpleNamespace(model=model, about=about)
    spec: Any = SimpleNamespace(source=source, part="")
    assert base_weights(spec) == f"{file}.safetensors"
    low: Any = SimpleNamespace(source=source, part="low_noise")
    assert base_weights(low) == f"{pair}.safetensors"
