"""Answers of ``weights inspect`` on files and folders, each made as another program does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from infer.checks import check_student
from lightx2v_sgmd.cli.main import run as main
from lightx2v_sgmd.families.inspection.inspecting import inspect_weights
from lightx2v_sgmd.families.wan.keys import transformer_to_original
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path
from tests.tiny import WEIGHTS, make_tiny_cogvideox, make_tiny_experts, make_tiny_wan
from tests.weights.conftest import write_checkpoint
from weights import export


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_wan(tmp_path_factory.mktemp("inspection") / "base")


@pytest.fixture(scope="module")
def tensors(base: Path) -> dict[str, torch.Tensor]:
    return load_file(base / WEIGHTS)


def facts(path: Path, **options: Any) -> dict[str, Any]:
    return inspect_weights(path, **options).to_dict()


def test_a_models_folder(base: Path, tmp_path: Path) -> None:
    found = facts(base)
    assert found["kind"] == "model" and found["layout"] == "diffusers"
    assert found["size"].startswith("2 layers of width 48, ")
    assert found["types"].endswith("in fp32") and len(found["missing"]) == 1  # the schedule
    (base / "vae" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "vae.safetensors")
    try:
        assert "the weights of the vae" in facts(base)["missing"]
        assert facts(tmp_path / "vae.safetensors")["kind"] == "VAE"
        encoder = base / "text_encoder" / "model.safetensors"
        assert facts(encoder)["kind"] == "text encoder"
    finally:
        moved = base / "vae" / "diffusion_pytorch_model.safetensors"
        (tmp_path / "vae.safetensors").rename(moved)


@pytest.mark.parametrize("rotary", [False, True])
def test_a_folder_of_cogvideox(tmp_path: Path, rotary: bool) -> None:
    found = facts(make_tiny_cogvideox(tmp_path / "model", rotary=rotary))
    assert found["kind"] == "model" and found["types"] == "64 in fp32"
    assert re.fullmatch(r"2 layers of width 32, [\d,]+ weights \(CogVideoX\)", found["size"])
    assert found["missing"] == ["a schedule, which exports of `lightx2v-sgmd export` have"]
    assert "unexpected" not in found
    with pytest.raises(UserError, match="give a student of CogVideoX"):
        check_student(tmp_path / "model")


def test_both_experts_are_looked_at(tmp_path: Path) -> None:
    model = make_tiny_experts(tmp_path / "model")
    pair = tmp_path / "pair"
    shutil.copytree(model / "transformer", pair / "high_noise_model")
    shutil.copytree(model / "transformer_2", pair / "low_noise_model")
    assert facts(model)["experts"] == "high-noise and low-noise, which meet at time 0.875"
    found = facts(pair)
    assert (found["kind"], found["experts"]) == ("network", "high-noise and low-noise")
    for second in (model / "transformer_2", pair / "low_noise_model"):
        tensors = load_file(second / WEIGHTS.name)
        del tensors["proj_out.bias"]
        save_file(tensors, second / WEIGHTS.name)
        missing = "1 weights in the low-noise expert: proj_out.bias"
        assert missing in facts(second.parent)["missing"]
    (model / "transformer_2" / WEIGHTS.name).unlink()
    with pytest.raises(UserError, match="has no weights in transformer_2"):
        facts(model)
    (model / "transformer" / WEIGHTS.name).unlink()
    assert "the weights of the low-noise expert" in facts(model)["missing"]


def test_a_research_checkpoint(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    ours = {transformer_to_original(name): tensor for name, tensor in tensors.items()}
    torch.save({"generator": ours, "generator_ema": ours, "step": 1}, tmp_path / "x.pt")
    found = facts(tmp_path / "x.pt")
    assert found["kind"] == "network"
    assert found["names"] == "original (Wan2.1, LightX2V), behind 'generator_ema.'"
    assert "Self-Forcing" in found["program"]
    assert any("--base" in line for line in found["missing"])


def test_what_is_missing_or_too_much(
    tensors: dict[str, torch.Tensor], tmp_path: Path, base: Path
) -> None:
    changed = dict(tensors)
    del changed["blocks.1.attn1.to_q.weight"]
    changed["blocks.0.to_gate_compress.weight"] = torch.zeros(2)
    save_file(changed, tmp_path / "x.safetensors", metadata=schedule_metadata(Schedule()))
    found = facts(tmp_path / "x.safetensors", base=base)
    assert "1 weights: blocks.1.attn1.to_q.weight" in found["missing"]
    assert "video sparse attention" in found["variant"]
    assert found["schedule"].startswith("1000/960/889/727, shift 8, euler")
    save_file({"a.b": torch.zeros(2)}, tmp_path / "y.safetensors")
    assert facts(tmp_path / "y.safetensors")["kind"] == "unknown"


@pytest.mark.parametrize(
    ("template", "program"),
    [
        ("lora_unet_blocks_0_self_attn_q.lora_{}.weight", "kohya or musubi-tuner"),
        ("diffusion_model.blocks.0.self_attn.q.lora_{}.weight", "ComfyUI or LightX2V"),
        ("base_model.model.blocks.0.attn1.to_q.lora_{}.weight", "PEFT"),
    ],
)
def test_a_lora(base: Path, tmp_path: Path, template: str, program: str) -> None:
    kinds = ("down", "up") if "PEFT" not in program else ("A", "B")
    pair = {
        template.format(kinds[0]): torch.ones(2, 48),
        template.format(kinds[1]): torch.ones(48, 2),
    }
    save_file(pair, tmp_path / "x.safetensors", metadata={"ss_network_alpha": "1"})
    found = facts(tmp_path / "x.safetensors", base=base)
    assert found["kind"] == "LoRA" and found["names"] == program and found["fits"] == str(base)
    assert found["layers"] == "1 in 1 blocks, rank 2"
    assert found["alpha"] == "ss_network_alpha in the metadata"
    assert "needs [2, 192]" in facts(tmp_path / "x.safetensors", base="sprites")["refused"]


@pytest.mark.parametrize(
    ("key", "kind"),
    [("dora_scale", "DoRA"), ("lokr_w1", "LoKr"), ("hada_w1_a", "LoHa")],
)
def test_other_kinds_of_adapters_are_named_by_every_command(
    base: Path, tmp_path: Path, key: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"diffusion_model.blocks.0.self_attn.q.{key}": torch.ones(4, 4)}, path)
    assert facts(path)["kind"] == f"{kind} file" and "not supported" in facts(path)["refused"]
    sized = ["--height", "32", "--width", "32", "--num-frames", "5", "--prompt", "a circle"]
    assumed, out = ["--assume-schedule", "sgmd"], ["--out", str(tmp_path / "out")]
    for command in (
        ["generate", "--weights", str(path), *sized, *out],
        ["generate", "--weights", str(base), "--lora", str(path), *assumed, *sized, *out],
        ["export", str(path), "--format", "wan", *out],
    ):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"is a {kind} file" in line and "not supported" in line


def test_a_plain_lora_given_as_weights_is_named(base: Path, tmp_path: Path) -> None:
    layer = "diffusion_model.blocks.0.self_attn.q"
    pair = {f"{layer}.lora_down.weight": torch.ones(2, 48)}
    path = tmp_path / "x.safetensors"
    save_file(pair | {f"{layer}.lora_up.weight": torch.ones(48, 2)}, path)
    with pytest.raises(UserError, match=r"is a LoRA; give its base model as --weights.*--lora"):
        check_student(path, "sgmd", base=base)
    with pytest.raises(UserError, match=r"is a LoRA, and no run, checkpoint or export"):
        export(path, "wan", tmp_path / "out", quiet=True)


def test_a_shard_and_an_empty_file(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    shard = tmp_path / "model-00002-of-00003.safetensors"
    save_file({"blocks.1.attn1.to_q.weight": torch.zeros(2)}, shard)
    assert facts(shard)["holds"].startswith("one of 3 shards of a network; give the folder")
    save_file({}, tmp_path / "empty.safetensors")
    assert facts(tmp_path / "empty.safetensors")["holds"] == "no tensors"


def test_exports_and_runs(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "run", base, 20)
    for path, kind in (
        (tmp_path / "run", "training run"),
        (tmp_path / "run" / "checkpoints" / "step_000020", "checkpoint"),
    ):
        found = facts(path)
        assert found["kind"] == kind and found["method"] == "sgmd" and not found["missing"]
        assert found["schedule"].startswith("1000/960/889/727, shift 8, euler")
        assert found["student"] == "all weights" and found["trained_for"] == "32x32, 9 frames"
    assert facts(tmp_path / "run")["checkpoints"] == "step_000020"
    for format, dtype, kind in (
        ("diffusers", "bf16", "export of a whole model"),
        ("wan", "fp8", "export of a network"),
        ("lora", "fp32", "export of a LoRA"),
    ):
        out = export(tmp_path / "run", format, tmp_path / format, dtype=dtype, quiet=True)
        found = facts(out, base=None if format == "diffusers" else base)
        assert found["kind"] == kind and found["format"] == f"{format}, {dtype}"
        assert "lightx2v_sgmd.json" in found["schedule"]
    assert facts(tmp_path / "wan")["types"].startswith("20 matrices in 8 bits with scales")
    comfyui = export(tmp_path / "run", "comfyui", tmp_path / "c", dtype="fp8", quiet=True)
    assert facts(comfyui)["program"].startswith("ComfyUI of December 2025")
    assert main(["weights", "inspect", str(tmp_path / "wan"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written_by"] == "lightx2v-sgmd"
    assert main(["weights", "inspect", str(tmp_path / "nowhere")]) == 2


def test_a_run_that_trains_images_has_no_frames(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "job.yaml").write_text(config_path("sd3_medium_sgmd.yaml").read_text())
    assert inspect_weights(tmp_path).facts["trained for"] == "1024x1024"


def test_what_is_no_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UserError, match="is not a file of weights"):
        inspect_weights(tmp_path / "x.txt")


@pytest.mark.slow
def test_a_lora_of_ones_own_teacher_is_not_of_another_size(base: Path, tmp_path: Path) -> None:
    """No published model has its size: it is not said to be made for one, and --base tells."""
    pair = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 48),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.zeros(48, 2),
    }
    save_file(pair, tmp_path / "x.safetensors")
    alone = facts(tmp_path / "x.safetensors")
    assert "refused" not in alone and alone["fits"].endswith("name its base model by --base MODEL")
    assert facts(tmp_path / "x.safetensors", base=base)["fits"] == str(base)
    write_checkpoint(tmp_path / "run", base, 1)
    out = export(tmp_path / "run", "lora", tmp_path / "out", rank=2, quiet=True)
    assert facts(out)["fits"] == str(base)  # the export's manifest names it
