"""Exports for LightX2V: original names, a ready job, shards and 8 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.manifest import read_manifest
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.schedule import Schedule
from tests.weights import reading
from tests.weights.conftest import WAN, student_tensors
from weights import export, verify
from weights.export_spec import ExportSpec, Losses
from weights.formats.registry import FORMATS
from weights.opening import open_source
from weights.verify import differences


def test_wan_has_the_original_names_and_a_ready_job(exports: Any) -> None:
    out = exports("wan")
    stored = load_file(out / WAN)
    expected = reading.to_original(student_tensors(exports.teacher_folder, 1020))
    assert stored.keys() == expected.keys() and "blocks.1.cross_attn.norm_k.weight" in stored
    for name, tensor in stored.items():
        assert torch.equal(tensor, expected[name].bfloat16()), name
    assert json.loads((out / "config.json").read_text()) == {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": 48,
        "eps": 1e-6,
        "ffn_dim": 64,
        "freq_dim": 16,
        "in_dim": 4,
        "model_type": "t2v",
        "num_heads": 4,
        "num_layers": 2,
        "out_dim": 4,
        "text_dim": 16,
        "text_len": 512,
    }
    job = json.loads((out / "lightx2v.json").read_text())
    steps = {"sample_shift": 8, "denoising_step_list": [1000, 750, 500, 250], "infer_steps": 4}
    assert steps.items() <= job.items() and job["enable_cfg"] is False
    assert job["dit_original_ckpt"] == WAN  # the command runs in the folder, wherever it is
    header = reading.metadata_of(out / WAN)
    schedule = json.loads(header["lightx2v_sgmd"])["schedule"]
    assert header["modelspec.architecture"] == "wan2.1"
    assert schedule["timesteps"] == [1000, 960, 888.889, 727.273]
    manifest = read_manifest(out)
    assert manifest is not None and (manifest.format, manifest.dtype) == ("wan", "bf16")
    card = (out / "README.md").read_text()
    for file in out.glob("*.json"):  # what is published names no folder of its author
        assert file.name == "lightx2v_sgmd.json" or str(exports.folder) not in file.read_text()
    assert str(exports.folder) not in card
    assert "| student motion | 1.004 |" in card and "| n | 3 |" in card


def test_the_library_opens_a_wan_export(exports: Any) -> None:
    """As a teacher's transformer would be: the configuration and names are the original's."""
    model = open_wan(exports("wan", "fp32") / WAN, exports.teacher_folder)
    state = model.load_transformer().state_dict()
    for name, tensor in student_tensors(exports.teacher_folder, 1020).items():
        assert torch.equal(state[name], tensor)


def test_a_wrong_scale_is_found(exports: Any, tmp_path: Path) -> None:
    import shutil

    out = shutil.copytree(exports("wan", "fp8"), tmp_path / "fp8")
    tensors = load_file(out / WAN)
    tensors["blocks.0.ffn.0.weight_scale"] *= 2
    save_file(tensors, out / WAN, schedule_metadata(Schedule()))
    spec = ExportSpec(
        open_source(exports.run, ema=True), FORMATS["wan"], "fp8", exports("wan", "fp8")
    )
    report = json.loads((out / "losses.json").read_text())
    found = differences(spec, out, Losses("fp8", report["forward_error"], report["layers"], {}))
    assert "blocks.0.ffn.0.weight_scale has other values" in found


def test_wan_is_sharded_with_an_index(exports: Any, tmp_path: Path) -> None:
    export(exports.run, "wan", tmp_path / "out", max_shard_size="60KB", quiet=True)
    index = json.loads((tmp_path / "out" / f"{WAN}.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1 and verify(tmp_path / "out") == []
    together: dict[str, Any] = {}
    for file in files:
        together |= load_file(tmp_path / "out" / file)
        assert "lightx2v_sgmd" in reading.metadata_of(tmp_path / "out" / file)
    whole = load_file(exports("wan") / WAN)
    assert together.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(together[name], whole[name]) for name in whole)
    job = json.loads((tmp_path / "out" / "lightx2v.json").read_text())
    assert job["dit_original_ckpt"] == "."
