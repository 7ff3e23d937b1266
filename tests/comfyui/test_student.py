"""Checks of a file before ComfyUI loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightx2v_sgmd.comfyui.student import StudentFile, check_lora_fits, check_student
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError

FOUR, TWO = Schedule(), Schedule((1000.0, 500.0))
LAYER = "diffusion_model.blocks.0.ffn.0"


def write(path: Path, schedule: Schedule | None, **tensors: torch.Tensor) -> Path:
    metadata = {"format": "pt"} if schedule is None else schedule_metadata(schedule)
    save_file(tensors or {"weight": torch.zeros(2)}, path, metadata=metadata)
    return path


def write_lora(path: Path, wide: int, tall: int, names: tuple[str, str] = ("A", "B")) -> Path:
    down, up = (f"{LAYER}.lora_{name}.weight" for name in names)
    return write(path, FOUR, **{down: torch.zeros(4, wide), up: torch.zeros(tall, 4)})


def test_the_steps_are_those_of_the_weights_or_of_the_lora(tmp_path: Path) -> None:
    student = write(tmp_path / "student.safetensors", TWO)
    base = write(tmp_path / "base.safetensors", None)
    lora = write(tmp_path / "lora.safetensors", FOUR)
    assert check_student(student) == TWO
    assert check_student(base, lora) == FOUR
    with pytest.raises(UserError, match="base.safetensors: carries no schedule"):
        check_student(base)
    with pytest.raises(UserError, match="other steps .*student.safetensors: 1000, 888.889, lora"):
        check_student(student, lora)
    (tmp_path / "loras").mkdir()  # two folders may have files of one name
    namesake = write(tmp_path / "loras" / "student.safetensors", FOUR)
    with pytest.raises(UserError, match="other steps .*student.safetensors: 1000, 888.889, stud"):
        check_student(student, namesake)
    unmarked = write(tmp_path / "loras" / "base.safetensors", None)
    assert check_student(write(tmp_path / "base.safetensors", TWO), unmarked) == TWO
    (tmp_path / "torn.safetensors").write_bytes(b"abc")
    with pytest.raises(UserError, match="torn.safetensors"):
        check_student(tmp_path / "torn.safetensors")


@pytest.mark.parametrize("names", [("A", "B"), ("down", "up")])
def test_a_lora_of_another_network_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    layers, shapes = {LAYER: f"{LAYER}.weight"}, {f"{LAYER}.weight": (64, 32)}
    check_lora_fits(write_lora(tmp_path / "fits.safetensors", 32, 64, names), layers, shapes)
    wide = write_lora(tmp_path / "wide.safetensors", 128, 64, names)
    with pytest.raises(UserError, match="by a matrix of 64x128, but the network's has 64x32"):
        check_lora_fits(wide, layers, shapes)
    with pytest.raises(UserError, match="is not a layer of the network"):
        check_lora_fits(wide, {}, {})
    torn = {f"{LAYER}.lora_A.weight": torch.zeros(8)}
    with pytest.raises(UserError, match="by a matrix of .*, but the network's has 64x32"):
        check_lora_fits(write(tmp_path / "torn.safetensors", FOUR, **torn), layers, shapes)
    norm = {f"{LAYER}.weight": (64,)}
    with pytest.raises(UserError, match="by a matrix of 64x128, but the network's has 64;"):
        check_lora_fits(wide, layers, norm)
    with pytest.raises(UserError, match="holds no LoRA layer"):
        check_lora_fits(write(tmp_path / "no.safetensors", FOUR), layers, shapes)


def test_the_record_says_weights_and_steps() -> None:
    record = StudentFile("a.safetensors", None, FOUR).record()
    assert record == {"weights": "a.safetensors", "lora": None, "schedule": FOUR.to_dict()}
