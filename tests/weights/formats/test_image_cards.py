"""Cards, jobs and headers of students whose videos start from an image say so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import WanImageToVideoPipeline
from safetensors import safe_open
from torch import Tensor

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.lora_folder import lora_file_in
from tests.tiny import make_tiny_wan
from tests.weights import reading
from tests.weights.conftest import write_checkpoint
from weights import export
from weights.formats import lora_usage
from weights.formats.programs import COMFYUI, LIGHTX2V, Program, refusal
from weights.formats.wan import lightx2v_job
from weights.opening import open_source


def student(folder: Path, kind: Any) -> Path:
    """A run of a tiny model of that kind."""
    write_checkpoint(folder / "run", make_tiny_wan(folder / "teacher", kind=kind), 20, ema=False)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student(tmp_path_factory.mktemp("image"), "image")


@pytest.fixture(scope="module")
def lora(run: Path) -> Path:
    return export(run, "lora", run.parent / "lora", dtype="fp32", rank=48, quiet=True)


def test_the_lora_says_that_it_makes_videos_from_images(lora: Path) -> None:
    card = (lora / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["pipeline_tag"] == "image-to-video" and "image-to-video" in head["tags"]
    assert "It makes a video from an image in 4 network\nevaluations" in card
    assert "import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline\n" in card
    assert '    image=load_image("first_frame.png"),\n    prompt="a prompt",\n' in card
    assert (
        'generate --weights "teacher" --lora THIS_FOLDER \\\n    --prompt "a prompt" --image'
        in card
    )
    assert (lora / "workflow.json").exists() and "text-to-video" not in card
    assert "LightX2V does not run this student" in card and "lora_dynamic_apply" not in card
    file = lora_file_in(lora)
    assert file is not None
    with safe_open(file, "pt") as opened:
        told = opened.metadata()
    assert told["modelspec.tags"] == "image-to-video, distillation, sgmd"
    assert json.loads((lora / "lightx2v.json").read_text())["infer_steps"] == 4


def test_the_cards_lines_make_it_whole_in_diffusers(lora: Path, run: Path) -> None:
    """The lines add the changes of the image's norms too."""
    card = (lora / "README.md").read_text().replace("THIS_FOLDER", str(lora))
    (lines,) = re.findall(r"```python\n(from safetensors\.torch.*?)```", card, re.DOTALL)
    pipe: Any = WanImageToVideoPipeline.from_pretrained(run.parent / "teacher")
    pipe.load_lora_weights(str(lora))
    before = output(pipe.transformer)
    exec(lines, {"pipe": pipe})
    source = open_source(run, ema=False)
    network = open_wan(run.parent / "teacher").load_transformer()
    state = {name: source.tensors.read(name) for name in source.tensors.shapes}
    network.load_state_dict(state)
    expected = output(network)
    assert reading.relative(before, expected) > 1e-3
    torch.testing.assert_close(output(pipe.transformer), expected, atol=1e-5, rtol=1e-4)


def test_programs_that_run_such_sizes_are_told_the_task(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model has sizes that no program runs, so the programs' sizes are left out."""
    anything = Program("ComfyUI", {})
    monkeypatch.setattr(lora_usage, "COMFYUI", anything)
    monkeypatch.setattr("weights.formats.wan.LIGHTX2V_PROGRAM", anything)
    card = (export(run, "lora", tmp_path / "lora", rank=1, quiet=True) / "README.md").read_text()
    assert "--model_cls wan2.1_distill --task i2v \\\n" in card
    assert '--config_json lightx2v.json \\\n    --image_path "$OLDPWD/first_frame.png" \\\n' in card
    assert "lora_dynamic_apply" in card, "the change has more than linear layers"
    assert "ComfyUI applies all of the file but the changes of modulation" in card
    assert "`workflow.json`, which names these files" in card
    assert "The node Load Image takes the image" in card and "clip_vision_h.safetensors" in card


def test_lightx2v_gets_no_image_encoder_where_there_is_none(run: Path, tmp_path: Path) -> None:
    spec: Any = type("Spec", (), {})()
    spec.source = open_source(student(tmp_path, "image latents"), ema=False)
    assert lightx2v_job(spec)["use_image_encoder"] is False
    spec.source = open_source(run, ema=False)
    assert "use_image_encoder" not in lightx2v_job(spec)


def test_a_model_that_may_take_an_image_has_no_job_of_lightx2v(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_usage, "COMFYUI", Program("ComfyUI", {}))
    run = student(tmp_path, "text and image")
    out = export(run, "lora", tmp_path / "lora", rank=1, quiet=True)
    assert not (out / "lightx2v.json").exists() and not (out / "workflow.json").exists()
    assert (out / "adapter_config.json").exists(), "the names are the portable ones"
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text-to-video\n" in card
    assert "open ComfyUI's own workflow for `teacher`" in card
    assert "--out video.mp4" in card and "image.png" not in card


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", ["ComfyUI", "LightX2V"]),
        ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", ["ComfyUI", "LightX2V"]),
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", ["ComfyUI"]),
    ],
)
def test_published_sizes(name: str, runs: list[str]) -> None:
    config = open_wan(name).transformer_config
    found = [p.name for p in (COMFYUI, LIGHTX2V) if refusal(p, config) is None]
    assert found == runs


def output(network: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    shapes = {"x": (1, 12, 1, 8, 8), "text": (1, 512, 16), "image": (1, 257, 24)}
    x, text, image = (torch.randn(shape, generator=generator) for shape in shapes.values())
    with torch.no_grad():
        made = network(x, torch.tensor([700]), text, image, return_dict=False)[0]
    assert isinstance(made, Tensor)
    return made
