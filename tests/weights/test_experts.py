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
from distill.predictions import student_sample
from lightx2v_sgmd.families.experts import boundary_of
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.files.weighted_lora import WeightedLora
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

pytestmark = pytest.mark.slow

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
        x0, _ = student_sample(trainer.strategy, start_here, job.steps, 3)
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


def test_comfyui_has_a_file_and_a_loader_for_each_expert(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    out = export(run, "comfyui", tmp_path / "comfyui", dtype="fp32", quiet=True)
    assert verify(out) == []
    files = [f"teacher_sgmd_4step_{part}_fp32.safetensors" for part in ("high_noise", "low_noise")]
    assert sorted(file.name for file in out.glob("*.safetensors")) == files
    nodes = json.loads((out / "workflow_api.json").read_text())
    loaded = {key: n["inputs"] for key, n in nodes.items() if n["class_type"] == "UNETLoader"}
    assert [loader["unet_name"] for loader in loaded.values()] == files
    first, second = (n["inputs"] for n in nodes.values() if n["class_type"] == "KSamplerAdvanced")
    for sampler, file in zip((first, second), files, strict=True):
        shift = nodes[sampler["model"][0]]["inputs"]
        assert shift["shift"] == 5.0
        assert nodes[shift["model"][0]]["inputs"]["unet_name"] == file
        assert (sampler["steps"], sampler["cfg"], sampler["sampler_name"]) == (4, 1.0, "euler")
    assert (first["start_at_step"], first["end_at_step"]) == (0, 2)
    assert (second["start_at_step"], second["end_at_step"]) == (2, 4)
    assert (first["add_noise"], first["return_with_leftover_noise"]) == ("enable", "enable")
    assert (second["add_noise"], second["return_with_leftover_noise"]) == ("disable", "disable")
    assert nodes[second["latent_image"][0]]["inputs"] is first
    assert nodes[nodes["9"]["inputs"]["samples"][0]]["inputs"] is second
    drawn = json.loads((out / "workflow.json").read_text())
    assert len(drawn["nodes"]) == len(nodes)
    latents = [
        load_student(folder).generate(PROMPTS[0], 3, decode=False).latents
        for folder in (out, exported)
    ]
    assert torch.equal(*latents)
    back = export(out, "diffusers", tmp_path / "back", dtype="fp32", quiet=True)
    for name in ("transformer", "transformer_2"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        assert (back / file).read_bytes() == (exported / file).read_bytes()
    (out / files[1]).unlink()
    assert verify(out) != []


def test_adapters_of_each_expert_have_a_folder(
    run: Path, exported: Path, folder: Path, tmp_path: Path
) -> None:
    """The engine, stock diffusers and an export of the export give the same video."""
    out = export(run, "lora", tmp_path / "lora", dtype="fp32", quiet=True)
    assert verify(out) == []
    job = json.loads((out / "lightx2v.json").read_text())
    names = [each["name"] for each in job["lora_configs"]]
    files = [out / each["path"] for each in job["lora_configs"]]
    assert names == ["high_noise_model", "low_noise_model"] == [f.parent.name for f in files]
    assert job["boundary_step_index"] == 2
    nodes = json.loads((out / "workflow_api.json").read_text()).values()
    used = [n["inputs"] for n in nodes if n["class_type"] == "LoraLoaderModelOnly"]
    assert [lora["lora_name"] for lora in used] == [file.name for file in files]
    expected = load_student(exported).generate(PROMPTS[0], 3, decode=False).latents

    loras = tuple(WeightedLora(file.parent) for file in files)
    beside, merged = (
        load_student(folder / "teacher", loras=loras, merge_lora=merge) for merge in (False, True)
    )
    for student in (beside, merged):
        ours = student.generate(PROMPTS[0], 3, decode=False).latents
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)

    pipe = stock_pipe(folder / "teacher")
    pipe.scheduler = pipe.scheduler.from_pretrained(out, subfolder="scheduler")
    for file, second in zip(files, (False, True), strict=True):
        pipe.load_lora_weights(file.parent, weight_name=file.name, load_into_transformer_2=second)
    stock = run_stock(pipe, PROMPTS[:1], [3], num_frames=5)
    torch.testing.assert_close(expected, stock[0], atol=1e-4, rtol=0)

    again = export(out, "diffusers", tmp_path / "again", dtype="fp32", quiet=True)
    merged_weights = load_student(again).generate(PROMPTS[0], 3, decode=False).latents
    torch.testing.assert_close(merged_weights, expected, atol=1e-4, rtol=0)


def test_adapters_that_name_no_expert_are_refused(run: Path, folder: Path, tmp_path: Path) -> None:
    out = export(run, "lora", tmp_path / "lora", dtype="fp32", quiet=True)
    (file,) = (out / "low_noise_model").glob("*lora_weights.safetensors")
    plain = shutil.copyfile(file, tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="does not say which of the two experts"):
        load_student(folder / "teacher", loras=(WeightedLora(plain),))
    with pytest.raises(UserError, match="--lora .*high_noise_model --lora .*low_noise_model"):
        load_student(out)
    with pytest.raises(UserError, match="of two experts are not written under the names of musubi"):
        export(run, "lora", tmp_path / "musubi", names="musubi", quiet=True)


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
