"""LoRAs of the server's folder: their names, the check at the start, one loaded at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infer import Lora
from infer.options import Options
from infer.serve.students import Students, named_loras
from lightx2v_sgmd.files.safetensors_files import schedule_metadata
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.students import load_student

pytest.importorskip("peft")
LAYER = "diffusion_model.blocks.0.self_attn.v"
ENGINE = Options(device="cpu", dtype="fp32", text_cache=None)


def write_lora(path: Path, size: float, width: int = 48, schedule: Schedule | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    tensors = {
        f"{LAYER}.lora_A.weight": torch.full((4, width), size),
        f"{LAYER}.lora_B.weight": torch.full((48, 4), size),
    }
    metadata = {"format": "pt"} if schedule is None else schedule_metadata(schedule)
    save_file(tensors, path, metadata=metadata)
    return path


def test_names_are_those_of_the_files(tmp_path: Path) -> None:
    assert named_loras(None) == {}
    first = write_lora(tmp_path / "loras" / "anime_v1.2.safetensors", 0.1)
    (first.parent / "notes.txt").write_text("mine")
    assert named_loras(first.parent) == {"anime_v1.2": first}
    write_lora(first.parent / "two words.safetensors", 0.1)
    with pytest.raises(UserError, match="'two words.safetensors' is no name for requests"):
        named_loras(first.parent)
    with pytest.raises(UserError, match="none cannot be read"):
        named_loras(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds 0 .safetensors files"):
        named_loras(tmp_path / "empty")


def test_each_job_gets_the_student_with_its_lora(shared_student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    files = {name: write_lora(folder / f"{name}.safetensors", size) for name, size in SIZES.items()}
    students = Students(shared_student, ENGINE, named_loras(folder), 1)
    assert len(students.check().schedule) == 4 and students.batch_for((32, 32, 9)) == 1

    def made(lora: str | None) -> torch.Tensor:
        student = students.get(lora)
        assert students.get(lora) is student  # the next job of the same LoRA loads nothing
        return student.generate("a red circle", seed=3, decode=False).latents

    plain, strong, weak = made(None), made("strong"), made("weak")
    for latents, loras in ((plain, ()), (strong, ("strong",)), (weak, ("weak",))):
        applied = tuple(Lora(files[name]) for name in loras)
        alone = load_student(shared_student, loras=applied, dtype="fp32")
        expected = alone.generate("a red circle", seed=3, decode=False).latents
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
    assert (strong - plain).abs().max() > 10 * (weak - plain).abs().max() > 0
    torch.testing.assert_close(made(None), plain, atol=0, rtol=0)
    with pytest.raises(UserError, match="'gone' is not in the server's folder"):
        students.get("gone")


SIZES = {"strong": 0.5, "weak": 0.05}


@pytest.mark.parametrize(
    ("width", "schedule", "says"),
    [
        (64, None, "bad.safetensors"),
        (48, Schedule((1000.0, 500.0)), "weights have one schedule"),
    ],
)
def test_a_lora_that_does_not_fit_is_found_at_the_start(
    width: int, schedule: Schedule | None, says: str, shared_student: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "loras"
    write_lora(folder / "good.safetensors", 0.1)
    write_lora(folder / "bad.safetensors", 0.1, width, schedule)
    students = Students(shared_student, ENGINE, named_loras(folder), 1)
    with pytest.raises(UserError, match=says):
        students.check()


def test_a_lora_of_other_steps_than_the_base_is_served_with_is_refused(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "loras"
    write_lora(folder / "two_steps.safetensors", 0.1, schedule=Schedule((1000.0, 500.0)))
    engine = replace(ENGINE, assume_schedule="sgmd")
    students = Students(tiny_teacher, engine, named_loras(folder), 1)
    with pytest.raises(UserError, match="two_steps was distilled for other steps"):
        students.check()
