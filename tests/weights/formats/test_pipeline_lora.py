"""LoRA files of all families but Wan: stock diffusers loads them, and they hold the student."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from infer.options import Lora
from lightx2v_sgmd.cli.main import run as run_cli
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.files.lora_folder import DIFFUSERS_FILE
from lightx2v_sgmd.system.errors import UserError
from tests.students import load_student
from tests.tiny import make_tiny_cogvideox
from tests.tiny_sd3 import make_tiny_sd3
from tests.tiny_sdxl import make_tiny_sdxl
from tests.training import make_job, train
from weights import export

pytestmark = pytest.mark.slow

LORA = "{{train: lora, optimizer: {{lr: 1e-2}}, lora: {{rank: 2, alpha: 4, targets: [to_q, {}]}}}}"


@dataclass(frozen=True)
class Family:
    """A family whose stock pipeline reads one naming.

    Attributes:
        pipeline: The class of its stock pipeline.
        make: Writes its tiny model.
        settings: The settings of a job on it.
        steps: Number of the student's steps.
        frames: Number of frames; 1 for images.
    """

    pipeline: str
    make: Callable[[Path], Path]
    settings: tuple[str, ...]
    steps: int = 4
    frames: int = 1

    def latents(self, folder: Path, *loras: Path, scheduler: Path | None = None) -> Tensor:
        """The stock pipeline's latents, with LoRA files or folders added in their order."""
        pipe: Any = getattr(diffusers, self.pipeline).from_pretrained(folder)
        if scheduler is not None:
            kind = json.loads((scheduler / "scheduler" / "scheduler_config.json").read_text())
            named: Any = getattr(diffusers, kind["_class_name"])
            pipe.scheduler = named.from_pretrained(scheduler, subfolder="scheduler")
        names = [f"lora_{number}" for number, _ in enumerate(loras)]
        for name, lora in zip(names, loras, strict=True):
            pipe.load_lora_weights(str(lora), adapter_name=name)
        if names:
            pipe.set_adapters(names)
        pipe.set_progress_bar_config(disable=True)
        made = pipe(
            "red",
            height=32,
            width=32,
            **({"num_frames": self.frames} if self.frames > 1 else {}),
            num_inference_steps=self.steps,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
        )
        latents: Tensor = made.images if self.frames == 1 else made.frames
        return latents


IMAGE = "video={height: 32, width: 32}"
FAMILIES = {
    "sdxl": Family(
        "StableDiffusionXLPipeline", make_tiny_sdxl, (IMAGE, "schedule={base: [1000]}"), steps=1
    ),
    "sd3": Family("StableDiffusion3Pipeline", make_tiny_sd3, (IMAGE,)),
    "cogvideox": Family(
        "CogVideoXPipeline",
        make_tiny_cogvideox,
        ("video={height: 32, width: 32, num_frames: 9}",),
        frames=9,
    ),
}
RUNS = ("sdxl full", "sdxl adapters", "sd3 full", "sd3 adapters", "cogvideox adapters")
FINE_TUNES = ("sdxl adapters", "sd3 adapters", "cogvideox adapters")
"""The runs whose teacher has a LoRA."""


@dataclass(frozen=True)
class Exported:
    """A trained student, and its exports.

    Attributes:
        family: The family of its teacher.
        teacher: The teacher's folder.
        run: The run; all weights were trained, or adapters.
        adapters: True for adapters.
        style: The LoRA file of the teacher, if it has one.
        lora: The run as a LoRA file of the teacher's base.
        merged: That file merged into the base.
    """

    family: Family
    teacher: Path
    run: Path
    adapters: bool
    style: Path | None
    lora: Path
    merged: Path


@pytest.fixture(scope="module", params=RUNS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    name, kind = request.param.split()
    family, style = FAMILIES[name], None
    teacher = family.make(folder / "teacher")
    settings = [*family.settings, "train.iterations=2", "student.optimizer.lr=1e-2"]
    if kind == "adapters":
        lora = LORA.format("ff.net.2")
        settings += [f"student={lora}", f"fake_score={lora}"]
    if request.param in FINE_TUNES:
        style = write_style(teacher, folder / "style.safetensors")
        settings.append(f"teacher.loras=['{style}']")
    run = train(make_job(teacher, folder, *settings))
    exports = [export(run, "lora", folder / "lora", dtype="fp32", quiet=True)]
    exports.append(export(exports[0], "diffusers", folder / "merged", dtype="fp32", quiet=True))
    return Exported(family, teacher, run, kind == "adapters", style, *exports)


def write_style(teacher: Path, path: Path) -> Path:
    """A LoRA file in PEFT's names for queries, which students train too, and for values."""
    shapes = open_model(teacher).transformer_shapes()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith(("to_q.weight", "to_v.weight")):
            stored = f"base_model.model.{name.removesuffix('.weight')}"
            for key, size in (("A", (3, shape[1])), ("B", (shape[0], 3))):
                tensors[f"{stored}.lora_{key}.weight"] = torch.randn(size, generator=generator) / 2
    save_file(tensors, path)
    return path


def test_the_stock_pipeline_loads_it(exported: Exported) -> None:
    """The pipeline with the file is the one with the merged weights, and not the teacher."""
    family, teacher, lora = exported.family, exported.teacher, exported.lora
    found = family.latents(teacher, lora, scheduler=lora)
    torch.testing.assert_close(found, family.latents(exported.merged), atol=1e-4, rtol=0)
    assert (found - family.latents(teacher, scheduler=lora)).abs().max() > 0.01


def test_our_engine_runs_the_teacher_with_it(exported: Exported) -> None:
    """The engine with the file, beside the weights or merged into them, makes the student's."""
    expected = load_student(exported.merged).generate(["red"], [3], decode=False).latents
    for merge in (False, True):
        options: dict[str, Any] = {"loras": (Lora.parse(str(exported.lora)),), "merge_lora": merge}
        student = load_student(exported.teacher, **options)
        found = student.generate(["red"], [3], decode=False).latents
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_run_itself_is_what_it_holds(exported: Exported, tmp_path: Path) -> None:
    """The checkpoint's own weights, the teacher's LoRA included, give the same student."""
    if not exported.adapters:
        pytest.skip("norms and biases are lost where all weights were trained")
    whole = export(exported.run, "diffusers", tmp_path / "whole", dtype="fp32", quiet=True)
    found = exported.family.latents(whole)
    torch.testing.assert_close(found, exported.family.latents(exported.merged), atol=1e-4, rtol=0)


def test_above_its_fine_tune_it_goes_on_top_of_that(exported: Exported, tmp_path: Path) -> None:
    """The stock pipeline with the teacher's LoRA and then the student's makes the student's."""
    if exported.style is None:
        pytest.skip("the teacher has no LoRA")
    options: dict[str, Any] = {"dtype": "fp32", "quiet": True, "relative_to": "teacher"}
    above = export(exported.run, "lora", tmp_path / "above", **options)
    family, teacher = exported.family, exported.teacher
    style = tmp_path / "in_diffusers_names.safetensors"
    tensors = load_file(exported.style)
    network = open_model(teacher).pipeline.folder
    save_file({f"{network}.{k.split('.', 2)[2]}": v for k, v in tensors.items()}, style)
    found = family.latents(teacher, style, above, scheduler=above)
    expected = family.latents(exported.merged)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    alone = family.latents(teacher, above, scheduler=above)
    assert (alone - expected).abs().max() > 0.01
    assert "goes on top of `style.safetensors:1`" in (above / "README.md").read_text()


def test_it_holds_what_was_trained(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    losses = json.loads((exported.lora / "losses.json").read_text())
    folder, images = open_model(exported.teacher).pipeline.folder, exported.family.frames == 1
    with safe_open(exported.lora / DIFFUSERS_FILE, "pt") as file:
        told, names = file.metadata(), set(file.keys())
        assert all(name.startswith(f"{folder}.") for name in names)
        assert not any("bias" in name for name in names)
        if exported.adapters:  # they lose nothing
            assert losses["forward_error"] < 1e-6 and losses["energy"] > 1 - 1e-9
            trained = (".to_q.", ".ff.net.2.", *((".to_v.",) if exported.style else ()))
            assert all(any(layer in name for layer in trained) for name in names)
        elif folder == "unet":
            assert not any("norm" in name for name in names)
            down, up = (file.get_slice(f"unet.conv_in.lora_{kind}.weight") for kind in "AB")
            assert (down.get_shape(), up.get_shape()) == ([8, 4, 3, 3], [8, 8, 1, 1])
            assert losses["layers"]["conv_in.weight"]["relative_error"] < 1e-5
            assert 0 < losses["change_lost"] < 0.9  # norms and biases
    if folder == "unet":
        assert told["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
        assert told["modelspec.usage_hint"].startswith("1 step at shift 1, solver ddim")
    assert run_cli(["weights", "inspect", str(exported.lora)]) == 0
    said = capsys.readouterr().out
    assert "names: diffusers" in said and "schedule: 1000" in said
    assert "refused" not in said
    card = (exported.lora / "README.md").read_text()
    assert "load_lora_weights" in card and "ComfyUI" not in card
    task, result = ("text-to-image", ".images[0]") if images else ("text-to-video", ".frames[0]")
    assert task in card and result in card and ("num_frames=9" in card) != images


def test_names_of_other_families_are_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names: 'musubi' is not for .*; leave the option out"):
        export(exported.run, "lora", tmp_path / "lora", names="musubi", quiet=True)


def test_images_and_a_contact_sheet_are_written(exported: Exported, tmp_path: Path) -> None:
    if exported.adapters or exported.family.frames > 1:
        pytest.skip("one student of each family of images is enough")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red\na red circle\n")
    chosen = ["--weights", str(exported.merged), "--prompts", str(prompts), "--device", "cpu"]
    assert run_cli(["generate", *chosen, "--out", str(tmp_path / "o")]) == 0
    assert len(list((tmp_path / "o").glob("*.png"))) == 3
    assert (tmp_path / "o" / "contact_sheet.png").is_file()
