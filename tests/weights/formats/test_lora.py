"""Adapters: extracted by SVD, exact as far as they say, and understood by three programs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.lora_folder import lora_file_in
from lightx2v_sgmd.outputs import sha256_file
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import WEIGHTS, make_tiny_wan
from tests.weights import reading
from tests.weights.conftest import student_tensors, write_checkpoint
from weights import export, verify
from weights.export_spec import ExportSpec, Losses
from weights.formats.registry import FORMATS
from weights.opening import open_source
from weights.verify import differences


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run and its adapters, each made once; not to be written to."""
    base = tmp_path_factory.mktemp("lora")
    teacher = make_tiny_wan(base / "teacher")
    write_checkpoint(base / "run", teacher, 20)

    class Exports:
        folder, run, teacher_folder = base, base / "run", teacher
        student = student_tensors(teacher, 1020)

        def __call__(self, **options: Any) -> Path:
            out = base / "_".join(f"{k}-{v}" for k, v in options.items())
            if not out.exists():
                export(base / "run", "lora", out, quiet=True, **options)
            return out

    return Exports()


def lora_file(out: Path) -> Path:
    file = lora_file_in(out)
    assert file is not None
    return file


def report_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "losses.json").read_text()))


def test_the_workflow_names_the_files_of_this_network(exports: Any) -> None:
    out = exports(rank=4)
    nodes = json.loads((out / "workflow_api.json").read_text()).values()
    inputs = {key: value for node in nodes for key, value in node["inputs"].items()}
    assert inputs["unet_name"] == "teacher.safetensors"
    assert re.fullmatch(
        r"teacher_sgmd_4step_[a-z0-9]+_pytorch_lora_weights\.safetensors", inputs["lora_name"]
    )


def test_names_and_content(exports: Any) -> None:
    out = exports(rank=4)
    stored = load_file(lora_file(out))
    assert all(name.startswith("diffusion_model.") for name in stored)
    layer = "diffusion_model.blocks.1.cross_attn.o"
    assert stored[f"{layer}.lora_up.weight"].shape == (48, 4)
    assert stored[f"{layer}.lora_down.weight"].shape == (4, 48)
    assert stored[f"{layer}.alpha"].item() == 4
    assert stored[f"{layer}.diff_b"].shape == (48,)
    for name in ("blocks.0.self_attn.norm_q.diff", "blocks.0.norm3.diff", "patch_embedding.diff"):
        assert f"diffusion_model.{name}" in stored
    # Both forms of what two programs call by two names.
    modulation = "diffusion_model.blocks.0.modulation.diff"
    assert torch.equal(stored[modulation], stored["diffusion_model.blocks.0.diff_m"])
    assert reading.metadata_of(lora_file(out))["lightx2v_sgmd"]
    job = json.loads((out / "lightx2v.json").read_text())
    assert job["lora_configs"] == [{"path": lora_file(out).name, "strength": 1.0}]
    api = json.loads((out / "workflow_api.json").read_text())
    assert api["11"]["inputs"]["lora_name"].endswith("_pytorch_lora_weights.safetensors")
    assert api["4"]["inputs"]["model"] == ["11", 0]
    assert verify(out) == []


@pytest.mark.parametrize("program", [reading.lightx2v_lora, reading.comfyui_lora])
def test_full_rank_adapters_give_the_student_back(exports: Any, program: Any) -> None:
    out = exports(rank=1000, dtype="fp32")
    base = reading.to_original(reading.teacher_weights(exports.teacher_folder))
    merged = reading.to_diffusers(program(base, load_file(lora_file(out))))
    for name, tensor in exports.student.items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=1e-5)
    assert report_of(out)["forward_error"] < 1e-4 and report_of(out)["energy"] > 0.999999


@pytest.mark.parametrize("options", [{"rank": 8}, {"energy": 0.8}])
def test_every_layer_is_within_its_reported_error(exports: Any, options: dict[str, Any]) -> None:
    out = exports(**options)
    teacher = reading.teacher_weights(exports.teacher_folder)
    base = reading.to_original(teacher)
    merged = reading.to_diffusers(reading.lightx2v_lora(base, load_file(lora_file(out))))
    layers = report_of(out)["layers"]
    assert len(layers) == 26  # ten in each block, five embedders, the head
    for name, values in layers.items():
        change = exports.student[name] - teacher[name]
        seen = ((merged[name] - exports.student[name]).norm() / change.norm()).item()
        assert seen == pytest.approx(values["relative_error"], rel=1e-2, abs=1e-3)
        if "energy" in options:
            assert values["energy"] >= 0.79  # the factors are rounded to bf16
        else:
            assert values["rank"] == 8
    ranks = {values["rank"] for values in layers.values()}
    assert len(ranks) == 1 or "energy" in options


@pytest.mark.parametrize("options", [{"rank": 1000, "dtype": "fp32"}, {"energy": 0.8}])
def test_stock_diffusers_takes_them(exports: Any, options: dict[str, Any]) -> None:
    """``load_lora_weights`` gives what merging gives, and the student within the reported error."""
    out = exports(**options)
    teacher, student = exports.teacher_folder, exports.student
    base = reading.teacher_weights(teacher)
    applied = reading.evaluate(teacher, None, lora=out)
    merged = reading.to_diffusers(
        reading.lightx2v_lora(reading.to_original(base), load_file(lora_file(out)))
    )
    skipped = [
        name for name in base if "norm" in name or "table" in name or "patch_embedding" in name
    ]
    taken = {name: base[name] if name in skipped else merged[name] for name in base}
    torch.testing.assert_close(applied, reading.evaluate(teacher, taken), atol=1e-5, rtol=1e-4)
    report = report_of(out)
    exact = reading.evaluate(teacher, student)
    seen = reading.relative(applied, exact)
    assert seen == pytest.approx(report["forward_error_in_diffusers"], rel=1e-3)
    assert seen < reading.relative(reading.evaluate(teacher, base), exact)
    everything = reading.evaluate(teacher, merged)
    assert reading.relative(everything, exact) == pytest.approx(
        report["forward_error"], rel=1e-3, abs=1e-6
    )
    if "rank" in options:
        # With what diffusers skips given to it, the student is there.
        whole = {name: student[name] if name in skipped else base[name] for name in base}
        applied = reading.evaluate(teacher, whole, lora=out)
        torch.testing.assert_close(applied, exact, atol=1e-5, rtol=1e-4)


def test_the_same_student_gives_the_same_bytes(exports: Any, tmp_path: Path) -> None:
    export(exports.run, "lora", tmp_path / "again", rank=4, quiet=True)
    assert sha256_file(lora_file(tmp_path / "again")) == sha256_file(lora_file(exports(rank=4)))


def test_adapters_are_a_source_too(exports: Any, tmp_path: Path) -> None:
    """Merged into the teacher for a full format; as they are for another set of adapters."""
    out = exports(rank=8)
    export(out, "diffusers", tmp_path / "full", dtype="fp32", quiet=True)
    full = load_file(tmp_path / "full" / WEIGHTS)
    base = reading.to_original(reading.teacher_weights(exports.teacher_folder))
    merged = reading.to_diffusers(reading.lightx2v_lora(base, load_file(lora_file(out))))
    for name, tensor in merged.items():
        torch.testing.assert_close(full[name], tensor, atol=1e-6, rtol=1e-5)
    export(out, "lora", tmp_path / "again", quiet=True)
    assert sha256_file(lora_file(tmp_path / "again")) == sha256_file(lora_file(out))
    with pytest.raises(UserError, match="the source consists of adapters already"):
        export(out, "lora", tmp_path / "other", rank=2, quiet=True)


def test_boasting_reports_are_found(exports: Any) -> None:
    out = exports(rank=8)
    spec = ExportSpec(open_source(exports.run, ema=True), FORMATS["lora"], "bf16", out, rank=8)
    told = report_of(out)
    honest = Losses("lora", told["forward_error"], told["layers"], {})
    assert differences(spec, out, honest) == []
    first = next(iter(told["layers"]))
    layers = {**told["layers"], first: {"relative_error": 0.01}}
    found = differences(spec, out, Losses("lora", told["forward_error"] / 2, layers, {}))
    assert any(line.startswith(f"{first} is off by") for line in found)
    assert any(line.startswith("a forward pass is off by") for line in found)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"rank": 4}, {"rank": 4, "names": "diffusers"}])
def test_the_error_of_the_whole_rollout_is_reported_by_program(
    exports: Any, options: dict[str, Any]
) -> None:
    """Worked anew: Euler's four steps of the stock network, with what each program applies."""
    out = exports(**options)
    report = report_of(out)
    teacher = reading.teacher_weights(exports.teacher_folder)
    merged = reading.to_diffusers(
        reading.lightx2v_lora(reading.to_original(teacher), load_file(lora_file(exports(rank=4))))
    )
    linear = {
        name: merged[name] if name not in teacher or _is_linear(name) else teacher[name]
        for name in teacher
    }
    exact = _rolled_out(exports.teacher_folder, exports.student)
    seen = {
        "whole": reading.relative(_rolled_out(exports.teacher_folder, merged), exact),
        "linear": reading.relative(_rolled_out(exports.teacher_folder, linear), exact),
    }
    assert seen["whole"] < seen["linear"]
    if "names" in options:  # the file has no more than diffusers applies
        expected = {"lightx2v-sgmd": seen["linear"], "diffusers": seen["linear"]}
    else:  # ComfyUI and LightX2V do not run so small a network
        expected = {
            "lightx2v-sgmd": seen["whole"],
            "diffusers": seen["linear"],
            "PEFT": seen["linear"],
        }
    assert report["rollout_error"] == pytest.approx(expected, rel=2e-2) and report["steps"] == 4
    card = (out / "README.md").read_text()
    assert (
        f"after the 4 steps the latents are off by {report['rollout_error']['lightx2v-sgmd']:.2%}"
        in card
    )


def _is_linear(name: str) -> bool:
    return not ("norm" in name or "table" in name or "patch_embedding" in name)


def _rolled_out(teacher: Path, weights: dict[str, Tensor]) -> Tensor:
    network = open_wan(teacher).load_transformer()
    network.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    frames, height, width = (2 * length for length in network.config.patch_size)
    x_t = torch.randn(1, network.config.in_channels, frames, height, width, generator=generator)
    text = torch.randn(8, network.config.text_dim, generator=generator)
    text = torch.cat([text, torch.zeros(512 - 8, text.shape[1])])[None]
    times = [1.0, 0.96, 8 / 9, 8 / 11, 0.0]
    with torch.no_grad():
        for time, later in zip(times, times[1:], strict=False):
            velocity = network(x_t, torch.tensor([1000 * time]), text, return_dict=False)[0]
            x_t = x_t + (later - time) * velocity
    return x_t
