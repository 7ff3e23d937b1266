"""Students trained by adapters: exported as they are, or merged into their teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infer.network.lora import check_loras
from infer.options import Lora
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.job.schema import AdapterSettings
from lightx2v_sgmd.networks.adapters import adapter_metadata
from lightx2v_sgmd.system.errors import UserError
from tests.students import generate_files
from tests.tiny import WAN_LAYERS, WEIGHTS, make_tiny_wan
from tests.weights import reading
from tests.weights.conftest import write_lora_checkpoint, write_manifest
from tests.weights.formats.test_lora import lora_file
from weights import export, verify

LORA = AdapterSettings(rank=4, alpha=8.0, targets=WAN_LAYERS)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of adapters and its exports, each made once; not to be written to."""
    base = tmp_path_factory.mktemp("trained")
    teacher_folder = make_tiny_wan(base / "teacher")
    write_lora_checkpoint(base / "run", teacher_folder, 20, LORA)

    class Exports:
        folder, run, teacher = base, base / "run", teacher_folder
        checkpoint = base / "run" / "checkpoints" / "step_000020"

        def __call__(self, format: str, **options: Any) -> Path:
            out = base / "_".join([format, *(f"{k}-{v}" for k, v in options.items())])
            if not out.exists():
                export(base / "run", format, out, quiet=True, **options)
            return out

    return Exports()


def merged(
    exports: Any, name: str = "student_ema", lora: AdapterSettings = LORA
) -> dict[str, Tensor]:
    """The teacher's weights with the checkpoint's adapters, put together from their definition."""
    weights = {n: t.clone() for n, t in reading.teacher_weights(exports.teacher).items()}
    stored = load_file(exports.checkpoint / f"{name}.safetensors")
    for key in [key for key in stored if key.endswith(".lora_A.weight")]:
        layer = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        product = stored[key.replace("lora_A", "lora_B")] @ stored[key]
        weights[f"{layer}.weight"] += (lora.alpha or lora.rank) / lora.rank * product
    return weights


def test_adapters_are_exported_as_they_were_trained(exports: Any) -> None:
    out = exports("lora", dtype="fp32")
    stored = load_file(lora_file(out))
    trained = load_file(exports.checkpoint / "student_ema.safetensors")
    assert len(stored) == len(trained) // 2 * 3, "two factors and an alpha a layer, nothing else"
    layer, ours = "diffusion_model.blocks.1.ffn.0", "transformer.blocks.1.ffn.net.0.proj"
    assert torch.equal(stored[f"{layer}.lora_up.weight"], trained[f"{ours}.lora_B.weight"])
    assert torch.equal(stored[f"{layer}.lora_down.weight"], trained[f"{ours}.lora_A.weight"])
    assert {t.item() for n, t in stored.items() if n.endswith(".alpha")} == {8.0}
    report = json.loads((out / "losses.json").read_text())
    assert report["forward_error"] == 0 and report["change_lost"] == 0
    assert len(report["layers"]) == 20
    assert all(values["relative_error"] == 0 for values in report["layers"].values())
    assert verify(out) == []
    with pytest.raises(UserError, match="the source consists of adapters already"):
        export(exports.run, "lora", exports.folder / "other", rank=2, quiet=True)


@pytest.mark.parametrize("program", [reading.lightx2v_lora, reading.comfyui_lora])
def test_programs_make_the_student_of_them(exports: Any, program: Any) -> None:
    base = reading.to_original(reading.teacher_weights(exports.teacher))
    stored = load_file(lora_file(exports("lora", dtype="fp32")))
    found = reading.to_diffusers(program(base, stored))
    for name, tensor in merged(exports).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_stock_diffusers_loads_them(exports: Any, dtype: str) -> None:
    out = exports("lora", dtype=dtype)
    expected = reading.evaluate(exports.teacher, merged(exports))
    applied = reading.evaluate(exports.teacher, None, lora=out)
    reported = json.loads((out / "losses.json").read_text())["forward_error_in_diffusers"]
    seen = reading.relative(applied, expected)
    assert seen == pytest.approx(reported, rel=1e-2, abs=1e-5)
    assert seen < 0.01 < reading.relative(reading.evaluate(exports.teacher, None), expected)


@pytest.mark.parametrize("ema", [True, False])
def test_merged_into_the_teacher(exports: Any, ema: bool) -> None:
    out = exports("diffusers", dtype="fp32", ema=ema)
    found = load_file(out / WEIGHTS)
    expected = merged(exports, "student_ema" if ema else "student")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)
    assert json.loads((out / "lightx2v_sgmd.json").read_text())["ema"] is ema
    assert verify(out) == []


@pytest.mark.parametrize(
    ("format", "dtype"), [("wan", "bf16"), ("wan", "fp8"), ("comfyui", "bf16"), ("comfyui", "fp8")]
)
def test_merged_for_other_programs(exports: Any, format: str, dtype: str) -> None:
    out = exports(format, dtype=dtype)
    (file,) = out.glob("*.safetensors")
    stored = load_file(file)
    weights = stored if format == "wan" else reading.comfyui_loads(stored)
    if format == "wan" and dtype == "fp8":
        weights = reading.lightx2v_fp8(stored)
    found = reading.to_diffusers({name: t.float() for name, t in weights.items()})
    for name, tensor in merged(exports).items():
        error = reading.relative(found[name], tensor)
        assert error < (0.05 if dtype == "fp8" else 0.004), name
    assert verify(out) == []


def test_the_card_says_how_it_was_trained(exports: Any) -> None:
    told = "adapters (LoRA) of rank 4, alpha 8, on to_q, to_k, to_v, to_out.0, ffn.net.0.proj"
    card = (exports("lora", dtype="bf16") / "README.md").read_text()
    assert "student, trained as a LoRA, as a LoRA for its teacher\n" in card and told in card
    full = exports("diffusers", dtype="fp32", ema=True)
    card = (full / "README.md").read_text()
    assert "student, trained as a LoRA and merged into its teacher\n" in card and told in card
    again = exports.folder / "wan_of_diffusers"
    export(full, "wan", again, quiet=True)
    assert told in (again / "README.md").read_text()


def test_exported_adapters_change_format_as_trained_ones_do(exports: Any, tmp_path: Path) -> None:
    adapters = exports("lora", dtype="fp32")
    export(adapters, "diffusers", tmp_path / "full", dtype="fp32", quiet=True)
    found, expected = (
        load_file(out / WEIGHTS)
        for out in (tmp_path / "full", exports("diffusers", dtype="fp32", ema=True))
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    export(adapters, "lora", tmp_path / "again", dtype="fp32", quiet=True)
    assert lora_file(tmp_path / "again").read_bytes() == lora_file(adapters).read_bytes()


def test_the_engine_runs_every_export(exports: Any, tmp_path: Path) -> None:
    """Merged, merged under original names, as adapters, and a checkpoint's own file."""
    full = exports("diffusers", dtype="fp32", ema=True)
    (wan,) = exports("wan", dtype="bf16").glob("*.safetensors")
    (comfyui,) = exports("comfyui", dtype="bf16").glob("*.safetensors")
    teacher, checkpoint = exports.teacher, exports.checkpoint / "student_ema.safetensors"
    ways: dict[str, tuple[Path, dict[str, Any]]] = {
        "full": (full, {}),
        "wan": (wan, {"base": teacher}),
        "comfyui": (comfyui, {"base": teacher}),
        "lora": (teacher, {"loras": [exports("lora", dtype="fp32")]}),
        "checkpoint": (teacher, {"loras": [checkpoint]}),
    }
    sizes: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 5}
    made = {}
    for name, (weights, options) in ways.items():
        if "loras" in options:
            options["loras"] = [Lora.parse(str(path)) for path in options["loras"]]
        out = tmp_path / f"{name}.mp4"
        chosen = {"dtype": torch.float32, "quiet": True, **sizes, **options}
        generate_files(weights, "a red circle moving left", out, **chosen)
        made[name] = out.read_bytes()
    assert made["lora"] == made["full"] == made["checkpoint"]
    assert all(made.values())


def test_metadata_that_cannot_be_read_is_refused(exports: Any, tmp_path: Path) -> None:
    tensors = load_file(exports.checkpoint / "student.safetensors")
    for text in ("{", "[]", '{"transformer.r": "4"}'):
        save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
        lora = Lora(tmp_path / "x.safetensors")
        with pytest.raises(UserError, match="lora_adapter_metadata"):
            check_loras([lora], {"proj_out.weight": (4, 4)})


def test_another_rank_than_the_file_says_is_refused(exports: Any, tmp_path: Path) -> None:
    tensors = load_file(exports.checkpoint / "student.safetensors")
    save_file(
        tensors,
        tmp_path / "x.safetensors",
        adapter_metadata(AdapterSettings(rank=60000, targets=WAN_LAYERS)),
    )
    shapes = open_wan(exports.teacher).transformer_shapes()
    with pytest.raises(UserError, match=r"is \[4, 48\], the model's layer needs \[60000, 48"):
        check_loras([Lora(tmp_path / "x.safetensors")], shapes)


@pytest.mark.parametrize(
    "targets", [("to_q",), ("attn2.to_v", "proj_out", "condition_embedder.time_proj")]
)
def test_other_layers_and_none_outside_blocks_or_some(
    tmp_path: Path, targets: tuple[str, ...]
) -> None:
    """diffusers takes all layers outside the blocks or none; there alpha is multiplied in."""
    lora = AdapterSettings(rank=2, alpha=6.0, targets=targets)
    teacher_folder = make_tiny_wan(tmp_path / "teacher")

    class Here:
        checkpoint = write_lora_checkpoint(tmp_path / "run", teacher_folder, 20, lora)
        teacher = teacher_folder

    out = export(tmp_path / "run", "lora", tmp_path / "out", dtype="fp32", quiet=True)
    stored = load_file(lora_file(out))
    assert ("diffusion_model.head.head.lora_up.weight" in stored) == ("proj_out" in targets)
    expected = reading.evaluate(teacher_folder, merged(Here, lora=lora))
    applied = reading.evaluate(teacher_folder, None, lora=out)
    torch.testing.assert_close(applied, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("damage", ["missing", "rank", "full"])
def test_adapters_that_are_not_the_jobs_are_refused(
    teacher: Path, tmp_path: Path, damage: str
) -> None:
    folder = write_lora_checkpoint(tmp_path / "run", teacher, 20, LORA)
    file = folder / "student_ema.safetensors"
    tensors, metadata = load_file(file), reading.metadata_of(file)
    first = "transformer.blocks.0.attn1.to_q.lora_A.weight"
    if damage == "missing":
        del tensors[first]
    elif damage == "rank":
        tensors[first] = torch.zeros(5, 48)
    else:
        tensors = reading.teacher_weights(teacher)
    save_file(tensors, file, metadata)
    write_manifest(folder)
    with pytest.raises(UserError, match=r"student_ema\.safetensors"):
        export(folder, "diffusers", tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
