"""Hostile folders in the places of a job that are not its teacher's path."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lightx2v_sgmd.cli.main import run as run_cli
from tests.tiny import make_tiny_wan
from tests.untrusted.hostile import KINDS
from tests.untrusted.kinds import CODE
from tests.untrusted.test_hostile import PROGRAMS

JOB = """
teacher: {path: sprites, guidance_scale: 3.0}
data: {prompts: sprites}
video: {height: 32, width: 32, num_frames: 9}
train: {iterations: 1}
output: {dir: run}
"""
OF_A_NETWORK = (
    "auto_map",
    "class_unknown",
    "layers_1e9",
    "json_deep",
    "index_pipeline",
    "header_1500000",
    "pickle_in_its_place",
    "pickle_with_its_name",
    "index_outside",
    "linked_outside",
    "config_linked",
)
BY_NAME = {kind.name: kind for kind in KINDS}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_wan(tmp_path_factory.mktemp("good") / "teacher")


def refused(
    command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[str, list[str]]:
    """The line of a refused command, and the files that it left."""
    (folder / "job.yaml").write_text(JOB)
    assert run_cli(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) <= 300 and "internal error" not in line
    return line, sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("role", ["student", "fake_score"])
@pytest.mark.parametrize("kind", OF_A_NETWORK)
def test_a_hostile_model_that_a_role_starts_from(
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    role: str,
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, tmp_path / "model")
    for program in PROGRAMS:
        (tmp_path / "model" / program).write_text(CODE)
    BY_NAME[f"teacher_{kind}"].damage(tmp_path / "model")
    command = ["distill", "job.yaml", "--quiet", "--set", f"{role}.path=model"]
    line, left = refused(command, tmp_path, capsys)
    assert "model" in line and left == ["job.yaml", "model"]


@pytest.mark.parametrize("kind", [name for name in BY_NAME if name.startswith("lora_")])
def test_a_hostile_lora_of_the_teacher(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lora: Path,
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(lora, tmp_path / "x.safetensors")
    BY_NAME[kind].damage(tmp_path)
    command = ["distill", "job.yaml", "--quiet", "--set", "teacher.loras=[x.safetensors]"]
    line, left = refused(command, tmp_path, capsys)
    assert "x.safetensors" in line and left == ["job.yaml", "x.safetensors"]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA as peft writes it: two matrices of a layer."""
    import torch
    from safetensors.torch import save_file

    file = tmp_path_factory.mktemp("lora") / "x.safetensors"
    layer = "transformer.blocks.0.attn1.to_q"
    matrices = {"lora_A": torch.zeros(4, 48), "lora_B": torch.zeros(48, 4)}
    save_file({f"{layer}.{name}.weight": matrix for name, matrix in matrices.items()}, file)
    return file
