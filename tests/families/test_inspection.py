"""What ``weights inspect`` says of files and folders, each made as another program makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightx2v_sgmd.cli.main import run as main
from lightx2v_sgmd.families.inspection import config_from, inspect_weights
from lightx2v_sgmd.families.wan import open_wan
from lightx2v_sgmd.families.wan_keys import transformer_to_original
from lightx2v_sgmd.files.safetensors_files import schedule_metadata
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import WEIGHTS, make_tiny_wan
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


def test_the_configuration_follows_from_the_shapes(base: Path) -> None:
    model = open_wan(base)
    found = config_from(model.transformer_shapes())
    assert found is not None
    for key in ("patch_size", "in_channels", "text_dim", "freq_dim", "ffn_dim", "num_layers"):
        expected = model.transformer_config[key]
        assert found[key] == (list(expected) if key == "patch_size" else expected)
    assert config_from({"a": (1,)}) is None


def test_a_research_checkpoint(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    ours = {transformer_to_original(name): tensor for name, tensor in tensors.items()}
    torch.save({"generator": ours, "generator_ema": ours, "step": 1}, tmp_path / "x.pt")
    found = facts(tmp_path / "x.pt")
    assert found["kind"] == "network"
    assert found["names"] == "original (Wan2.1, LightX2V), behind 'generator_ema.'"
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


def test_exports_and_runs(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "run", base, 20)
    assert facts(tmp_path / "run")["kind"] == "training run"
    assert facts(tmp_path / "run" / "checkpoints" / "step_000020")["kind"] == "checkpoint"
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
    assert main(["weights", "inspect", str(tmp_path / "wan"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written_by"] == "lightx2v-sgmd"
    assert main(["weights", "inspect", str(tmp_path / "nowhere")]) == 2


def test_what_is_no_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UserError, match="is not a file of weights"):
        inspect_weights(tmp_path / "x.txt")
