"""LoRA files of SDXL's students: stock diffusers loads them, and what they hold is the student."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors import safe_open

from infer.options import Lora
from lightx2v_sgmd.cli.main import run as run_cli
from lightx2v_sgmd.files.lora_folder import DIFFUSERS_FILE
from lightx2v_sgmd.system.errors import UserError
from tests.students import load_student
from tests.training import make_job, train
from weights import export

pytestmark = pytest.mark.slow

SETTINGS = (
    "schedule={base: [1000], shift: 1.0, solver: ddim}",
    "video={height: 32, width: 32}",
    "train.iterations=2",
    "student.optimizer.lr=1e-2",
)
LORA = "{train: lora, optimizer: {lr: 1e-2}, lora: {rank: 2, alpha: 4, targets: [to_q, ff.net.2]}}"


@dataclass(frozen=True)
class Exported:
    """A trained student, and its exports.

    Attributes:
        run: The run; all weights were trained, or adapters.
        adapters: True for adapters.
        lora: The run as a LoRA file.
        merged: That file merged into the teacher.
    """

    run: Path
    adapters: bool
    lora: Path
    merged: Path


@pytest.fixture(scope="module", params=["full", "adapters"])
def exported(
    request: pytest.FixtureRequest, tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    folder, adapters = tmp_path_factory.mktemp(request.param), request.param == "adapters"
    roles = (f"student={LORA}", f"fake_score={LORA}") if adapters else ()
    run = train(make_job(tiny_sdxl, folder, *SETTINGS, *roles))
    lora = export(run, "lora", folder / "lora", dtype="fp32", quiet=True)
    merged = export(lora, "diffusers", folder / "merged", dtype="fp32", quiet=True)
    return Exported(run, adapters, lora, merged)


def image(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        "red",
        height=32,
        width=32,
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    )
    latents: torch.Tensor = made.images
    return latents


def test_the_stock_pipeline_loads_it(exported: Exported, tiny_sdxl: Path) -> None:
    """The pipeline with the file is the one with the merged weights, and not the teacher."""
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    pipe.scheduler = DDIMScheduler.from_pretrained(exported.lora, subfolder="scheduler")
    teachers = image(pipe)
    pipe.load_lora_weights(str(exported.lora))
    found = image(pipe)
    expected = image(StableDiffusionXLPipeline.from_pretrained(exported.merged))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - teachers).abs().max() > 0.01


def test_our_engine_runs_the_teacher_with_it(exported: Exported, tiny_sdxl: Path) -> None:
    """The engine with the file, beside the weights or merged into them, makes the student's."""
    expected = load_student(exported.merged).generate(["red"], [3], decode=False).latents
    for merge in (False, True):
        options: dict[str, Any] = {"loras": (Lora.parse(str(exported.lora)),), "merge_lora": merge}
        found = load_student(tiny_sdxl, **options).generate(["red"], [3], decode=False).latents
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_it_holds_what_was_trained(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    losses = json.loads((exported.lora / "losses.json").read_text())
    with safe_open(exported.lora / DIFFUSERS_FILE, "pt") as file:
        told = file.metadata()
        assert told["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
        assert told["modelspec.usage_hint"].startswith("1 step at shift 1, solver ddim")
        names = set(file.keys())
        assert not any("norm" in name or "bias" in name for name in names)
        if exported.adapters:  # they lose nothing
            assert losses["forward_error"] < 1e-6 and losses["energy"] > 1 - 1e-9
            assert all(".to_q." in name or ".ff.net.2." in name for name in names)
        else:
            down, up = (file.get_slice(f"unet.conv_in.lora_{kind}.weight") for kind in "AB")
            assert (down.get_shape(), up.get_shape()) == ([8, 4, 3, 3], [8, 8, 1, 1])
            assert losses["layers"]["conv_in.weight"]["relative_error"] < 1e-5
            assert 0 < losses["change_lost"] < 0.9  # norms and biases
    assert run_cli(["weights", "inspect", str(exported.lora)]) == 0
    said = capsys.readouterr().out
    assert "names: diffusers" in said and "schedule: 1000, shift 1, ddim" in said
    assert "refused" not in said
    card = (exported.lora / "README.md").read_text()
    assert "load_lora_weights" in card and "text-to-image" in card and "ComfyUI" not in card


def test_names_of_other_families_are_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names: 'musubi' is not for SDXL; leave the option out"):
        export(exported.run, "lora", tmp_path / "lora", names="musubi", quiet=True)


def test_images_and_a_contact_sheet_are_written(exported: Exported, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red\na red circle\n")
    chosen = ["--weights", str(exported.merged), "--prompts", str(prompts), "--device", "cpu"]
    assert run_cli(["generate", *chosen, "--out", str(tmp_path / "o")]) == 0
    assert len(list((tmp_path / "o").glob("*.png"))) == 3
    assert (tmp_path / "o" / "contact_sheet.png").is_file()
