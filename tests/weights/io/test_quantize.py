"""Exports at 8 bits are within the error that they report."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightx2v_sgmd.outputs import sha256_file
from tests.tiny import WEIGHTS
from tests.weights import reading
from tests.weights.conftest import WAN, student_tensors
from weights.export_spec import ExportSpec, Losses
from weights.formats.registry import FORMATS
from weights.opening import open_source
from weights.verify import differences


@pytest.mark.parametrize(
    ("format", "dtype"), [("wan", "fp8"), ("comfyui", "fp8"), ("comfyui", "fp8-legacy")]
)
def test_fp8_is_within_its_reported_error(exports: Any, format: str, dtype: str) -> None:
    out = exports(format, dtype)
    (file,) = out.glob("*.safetensors")
    stored = load_file(file)
    loaded = reading.lightx2v_fp8(stored) if format == "wan" else reading.comfyui_loads(stored)
    got = reading.to_diffusers(loaded)
    exact = student_tensors(exports.teacher_folder, 1020)
    assert got.keys() == exact.keys()
    losses = json.loads((out / "losses.json").read_text())
    assert len(losses["layers"]) == 20  # ten matrices in each of two blocks
    for name, tensor in exact.items():
        if name in losses["layers"]:
            reported = losses["layers"][name]["relative_error"]
            # What programs compute with is rounded to bf16, as the reported error has it.
            seen = reading.relative(got[name].bfloat16().float(), tensor)
            assert seen == pytest.approx(reported, rel=1e-4) and 0.01 < seen < 0.04
        else:
            assert torch.equal(got[name], tensor.bfloat16().float()), name
    kinds = {
        name: tensor.dtype for name, tensor in stored.items() if tensor.dtype != torch.bfloat16
    }
    scale = ".scale_weight" if dtype == "fp8-legacy" else ".weight_scale"
    expected = {scale: torch.float32, ".comfy_quant": torch.uint8}
    for name, kind in kinds.items():
        ending = name[name.rindex(".") :]
        assert kind == expected.get(ending, torch.float8_e4m3fn)
        assert "norm" not in name and "modulation" not in name and "embedding" not in name
    if format == "wan":
        assert stored["blocks.0.ffn.0.weight_scale"].shape == (64, 1)
        job = json.loads((out / "lightx2v.json").read_text())
        assert job["dit_quantized"] is True and job["dit_quantized_ckpt"] == WAN
    else:
        layer = "model.diffusion_model.blocks.0.ffn.0"
        assert stored[f"{layer}{scale}"].shape == ()
        assert ("model.diffusion_model.scaled_fp8" in stored) == (dtype == "fp8-legacy")
        told = json.loads(reading.metadata_of(file).get("_quantization_metadata", '{"layers": {}}'))
        assert len(told["layers"]) == (20 if dtype == "fp8" else 0)
        if dtype == "fp8":
            settings = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
            assert told["layers"][layer] == settings
            assert json.loads(bytes(stored[f"{layer}.comfy_quant"].tolist())) == settings
    narrow = torch.bfloat16
    before = reading.evaluate(exports.teacher_folder, exact, dtype=narrow)
    after = reading.evaluate(exports.teacher_folder, got, dtype=narrow)
    seen = reading.relative(after, before)
    assert seen == pytest.approx(losses["forward_error"], rel=1e-3) and 0.001 < seen < 0.05
    assert f"{losses['forward_error']:.2%}" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("format", "dtype"), [("wan", "fp8"), ("comfyui", "fp8"), ("comfyui", "fp8-legacy")]
)
def test_8_bit_exports_are_exported_again(exports: Any, format: str, dtype: str) -> None:
    """Into 8 bits without a change, and into other formats with the values that they stand for."""
    first = exports(format, dtype)
    again = exports(format, source=first.name)
    (before,), (after,) = (sorted(path.glob("*.safetensors")) for path in (first, again))
    assert sha256_file(before) == sha256_file(after)
    wide = load_file(exports("diffusers", "fp32", source=first.name) / WEIGHTS)
    name = "blocks.0.attn1.to_q.weight"
    exact = load_file(exports("diffusers", "fp32") / WEIGHTS)[name]
    assert 0 < (wide[name] - exact).abs().max() < exact.abs().max() / 16


def test_fp8_beyond_its_report_is_found(exports: Any) -> None:
    out = exports("wan", "fp8")
    spec = ExportSpec(open_source(exports.run, ema=True), FORMATS["wan"], "fp8", out)
    report = json.loads((out / "losses.json").read_text())
    honest = Losses("fp8", report["forward_error"], report["layers"], {})
    assert differences(spec, out, honest) == []
    boasting = Losses("fp8", report["forward_error"] / 2, report["layers"], {})
    assert any("a forward pass is off" in line for line in differences(spec, out, boasting))
