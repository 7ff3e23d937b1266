"""A student of two experts: trained, exported as a pair, and run by the engine and by diffusers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.building import StartingPoint, build_trainer
from distill.data import load_prompts
from distill.predictions import student_x0
from lightx2v_sgmd.families.experts import boundary_of
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.sampling.sampler import noise_for
from lightx2v_sgmd.system.errors import UserError
from tests.stock import run_stock, stock_pipe
from tests.students import load_student
from tests.tiny import make_tiny_experts
from tests.training import PROMPTS, make_job, train
from weights import export, verify
from weights.export_spec import ExportSpec
from weights.formats.registry import FORMATS
from weights.opening import open_source

SIZE = (32, 32, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run by adapters that has trained both experts."""
    teacher = make_tiny_experts(folder / "teacher")
    settings = ("student.train=lora", "student.lora.rank=4", "student.optimizer.lr=0.01")
    return train(make_job(teacher, folder, *settings, "train.ema=0.5", "train.micro_batch=1"))


@pytest.fixture(scope="module")
def exported(run: Path, folder: Path) -> Path:
    return export(run, "diffusers", folder / "student", dtype="fp32", quiet=True)


def test_training_engine_and_stock_pipeline_agree(run: Path, exported: Path, folder: Path) -> None:
    student = load_student(exported)
    ours = student.generate(PROMPTS[0], 3, decode=False).latents
    stock = run_stock(stock_pipe(exported), PROMPTS[:1], [3], num_frames=5)
    torch.testing.assert_close(ours, stock[0], atol=1e-4, rtol=0)
    job = make_job(folder / "teacher", folder, "student.train=lora", "student.lora.rank=4")
    model = open_model(folder / "teacher")
    start = StartingPoint(5, find_checkpoint(run))
    trainer = build_trainer(job, model, load_prompts(job), None, Ranks(), start, quiet=True)
    noise = noise_for(model, 3, model.latent_shape(*SIZE))
    with torch.no_grad(), trainer.strategy.averaged_student():
        batch = trainer.batches.micro_batch(0, 0)
        told, _ = trainer.batches.conditioning([0])
        start_here = replace(batch, noise=noise, conditioning=told)
        x0 = student_x0(trainer.strategy, start_here, job.schedule, 3)
    torch.testing.assert_close(ours, x0[0], atol=1e-4, rtol=0)
    teacher = run_stock(stock_pipe(folder / "teacher"), PROMPTS[:1], [3], num_frames=5)
    assert (teacher[0] - ours).abs().max() > 1e-2


def test_both_experts_moved(exported: Path, folder: Path) -> None:
    for ours, theirs in zip(
        open_model(exported).experts, open_model(folder / "teacher").experts, strict=True
    ):
        name = "blocks.0.attn1.to_q.weight"
        mine, before = (e.model.transformer_weights().tensor(name) for e in (ours, theirs))
        assert (mine - before).abs().max() > 1e-4


def test_experts_that_take_turns_give_the_same_video(exported: Path) -> None:
    together, apart = (load_student(exported, one_at_a_time=apart) for apart in (False, True))
    latents = [s.generate(PROMPTS[0], 3, decode=False).latents for s in (together, apart)]
    assert torch.equal(*latents)
    assert {"transformer", "transformer_2"} <= together.parts._present
    assert "transformer" not in apart.parts._present


def test_the_pair_is_verified_and_exported_again(exported: Path, tmp_path: Path) -> None:
    assert verify(exported) == []
    again = export(exported, "diffusers", tmp_path / "again", dtype="fp32", quiet=True)
    for name in ("transformer", "transformer_2"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        assert (again / file).read_bytes() == (exported / file).read_bytes()
    assert boundary_of(open_model(again).experts) == 0.875
    (again / "transformer_2" / "diffusion_pytorch_model.safetensors").unlink()
    assert any("transformer_2" in problem for problem in verify(again))


@pytest.mark.parametrize("dtype", ["fp32", "fp8"])
def test_the_original_layout_holds_the_pair(
    run: Path, exported: Path, tmp_path: Path, dtype: str
) -> None:
    out = export(run, "wan", tmp_path / "wan", dtype=dtype, quiet=True)
    assert verify(out) == []
    job = json.loads((out / "lightx2v.json").read_text())
    kind = "quantized" if dtype == "fp8" else "original"
    for part in ("high_noise", "low_noise"):
        file = f"{part}_model/diffusion_pytorch_model.safetensors"
        assert job[f"{part}_{kind}_ckpt"] == file and (out / file).is_file()
        assert (out / f"{part}_model" / "config.json").is_file()
    assert job["boundary_step_index"] == 2 and job["sample_guide_scale"] == [1, 1]
    assert not any(key.startswith("dit_original") for key in job)
    ours, theirs = (
        load_student(folder).generate(PROMPTS[0], 3, decode=False).latents
        for folder in (out, exported)
    )
    if dtype == "fp32":
        assert torch.equal(ours, theirs)
        back = export(out, "diffusers", tmp_path / "back", dtype="fp32", quiet=True)
        for name in ("transformer", "transformer_2"):
            file = f"{name}/diffusion_pytorch_model.safetensors"
            assert (back / file).read_bytes() == (exported / file).read_bytes()
    else:
        assert 1e-6 < (ours - theirs).abs().max() < 0.5
        assert any(layer.startswith("low_noise_model/") for layer in _lost_layers(out))


def _lost_layers(folder: Path) -> dict[str, object]:
    layers: dict[str, object] = json.loads((folder / "losses.json").read_text())["layers"]
    return layers


@pytest.mark.parametrize("format", ["comfyui", "lora"])
def test_formats_of_one_network_are_refused(run: Path, tmp_path: Path, format: str) -> None:
    with pytest.raises(UserError, match="two experts; use --format diffusers or wan"):
        export(run, format, tmp_path / "out", quiet=True)


def test_an_export_with_one_expert_twice_is_noticed(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    file = "diffusion_pytorch_model.safetensors"
    shutil.copyfile(copy / "transformer" / file, copy / "transformer_2" / file)
    spec = ExportSpec(open_source(run, True), FORMATS["diffusers"], "fp32", copy)
    assert any("other values" in p for p in spec.format.problems(spec, copy, None, lambda n: None))
    assert spec.format.problems(spec, exported, None, lambda n: None) == []


def test_a_student_without_an_expert_is_refused(exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    shutil.rmtree(copy / "transformer_2")
    with pytest.raises(UserError, match="has no transformer_2/config.json"):
        load_student(copy)


def test_stock_pipelines_are_told_the_boundary(exported: Path) -> None:
    index = json.loads((exported / "model_index.json").read_text())
    assert index["boundary_ratio"] == 0.875
    assert index["transformer_2"] == ["diffusers", "WanTransformer3DModel"]
