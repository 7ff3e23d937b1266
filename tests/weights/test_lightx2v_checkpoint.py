"""Checkpoints of LightX2V's trainer leave in this project's formats, with their own steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from lightx2v_sgmd.files.manifest import read_manifest
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.students import load_student
from tests.test_lightx2v import write_config
from tests.tiny import WEIGHTS, make_tiny_wan
from tests.weights.reading import to_original
from weights import export


def make_checkpoint(folder: Path, teacher: Path, student: Path, consolidated: bool) -> Path:
    """A checkpoint as LightX2V's trainer saves it after 1,000 iterations."""
    made = folder / "checkpoint-000001000"
    made.mkdir(parents=True)
    tree = yaml.safe_load(write_config(folder, teacher).read_text())
    tree["training"]["method"] = "video_sgmd"
    (made / "config.yaml").write_text(yaml.safe_dump(tree))
    tensors = to_original(load_file(student / WEIGHTS))
    if consolidated:
        where = made / "student_consolidated" / "transformer"
        where.mkdir(parents=True)
        save_file(tensors, where / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        (where / "config.json").write_text(json.dumps({"_class_name": "WanModel"}))
        (made / "dist_state").mkdir()
    else:
        torch.save(tensors, made / "model_state.pt")
    return made


@pytest.mark.parametrize("consolidated", [True, False])
def test_a_checkpoint_is_exported_with_the_steps_of_its_yaml(
    tiny_teacher: Path, tmp_path: Path, consolidated: bool
) -> None:
    student = make_tiny_wan(tmp_path / "student", seed=1)
    checkpoint = make_checkpoint(tmp_path / "run", tiny_teacher, student, consolidated)
    export(checkpoint, "diffusers", tmp_path / "out", dtype="fp32", quiet=True)
    made = load_file(tmp_path / "out" / WEIGHTS)
    for name, tensor in load_file(student / WEIGHTS).items():
        assert torch.equal(made[name], tensor), name
    about = read_manifest(tmp_path / "out")
    assert about is not None and about.schedule == Schedule(shift=5.0)
    assert (about.step, about.method["name"], about.teacher) == (1000, "sgmd", str(tiny_teacher))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "by SGMD with lightx2v_train." in card and "(shift 5 of" in card
    steps = load_student(tmp_path / "out").schedule.timesteps
    assert [round(step, 1) for step in steps.tolist()] == [1000.0, 937.5, 833.3, 625.0]
    # What its config calls shift is not 5: see Schedule.diffusers_config.
    stock = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    stock.set_timesteps(4)
    torch.testing.assert_close(stock.timesteps, steps, rtol=0, atol=2e-4)


def test_every_format_takes_a_checkpoint(tiny_teacher: Path, tmp_path: Path) -> None:
    student = make_tiny_wan(tmp_path / "student", seed=1)
    checkpoint = make_checkpoint(tmp_path / "run", tiny_teacher, student, consolidated=True)
    for name in ("wan", "comfyui", "lora"):
        export(checkpoint, name, tmp_path / name, quiet=True)
        about = read_manifest(tmp_path / name)
        assert about is not None and about.schedule == Schedule(shift=5.0), name
    job = json.loads((tmp_path / "wan" / "lightx2v.json").read_text())
    assert job["sample_shift"] == 5.0


def test_a_checkpoint_without_a_whole_student_is_refused(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    wide = make_tiny_wan(tmp_path / "wide", heads=2)
    other = make_checkpoint(tmp_path / "other", tiny_teacher, wide, consolidated=False)
    with pytest.raises(UserError, match="model_state.pt"):
        export(other, "diffusers", tmp_path / "out", quiet=True)
    parts = make_checkpoint(tmp_path / "parts", tiny_teacher, wide, consolidated=False)
    (parts / "model_state.pt").unlink()
    (parts / "dist_state").mkdir()
    with pytest.raises(UserError, match="set training.save_consolidated_student to true"):
        export(parts, "diffusers", tmp_path / "out", quiet=True)
    (parts / "pytorch_lora_weights.safetensors").touch()
    with pytest.raises(UserError, match="holds adapters; run them with .*--assume-schedule"):
        export(parts, "diffusers", tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
