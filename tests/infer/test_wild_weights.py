"""Weights as other programs and this one's exports write them: all of them run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infer.checks import check_student
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.system.errors import UserError
from tests.scaled import CONVENTIONS, FP8, original, quantised
from tests.students import load_student
from tests.tiny import WEIGHTS, make_tiny_wan
from tests.weights.conftest import write_checkpoint
from weights import FORMATS, export

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_wan(tmp_path_factory.mktemp("wild") / "base")


@pytest.fixture(scope="module")
def exact(base: Path) -> Tensors:
    """The weights under diffusers' names."""
    return load_file(base / WEIGHTS)


def behind(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def loaded(path: Path, base: Path | None) -> Tensors:
    """The tensors of the engine's network after the checks."""
    model = check_student(path, "sgmd", base=base).model
    return dict(model.load_transformer().state_dict())


def assert_same(got: Tensors, expected: Tensors, tolerance: float = 0.0) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        largest = tensor.abs().max().item()
        torch.testing.assert_close(got[name], tensor, atol=tolerance * largest, rtol=0)


@pytest.mark.parametrize(
    "prefix",
    ["model.", "module.", "_orig_mod.", "transformer.", "model.diffusion_model.", "net.model."],
)
@pytest.mark.parametrize("names", [dict, original])
def test_any_prefix_is_stripped_and_said(
    base: Path,
    exact: Tensors,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    prefix: str,
    names: Callable[[Tensors], Tensors],
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(behind(prefix, names(exact)), path)
    assert_same(loaded(path, base), exact)
    check_student(path, "sgmd", base=base, quiet=False)
    silent = prefix in ("model.diffusion_model.", "_orig_mod.")
    assert (f"weights behind '{prefix}'" in capsys.readouterr().err) is not silent


def test_wrappers_within_names_are_stripped(base: Path, exact: Tensors, tmp_path: Path) -> None:
    names = {
        name.replace("attn1.", "_fsdp_wrapped_module.attn1._orig_mod."): name for name in exact
    }
    save_file({new: exact[old] for new, old in names.items()}, tmp_path / "x.safetensors")
    assert_same(loaded(tmp_path / "x.safetensors", base), exact)


@pytest.mark.parametrize(
    ("content", "chosen"),
    [
        (lambda ours, other: ours, ""),
        (lambda ours, other: {"generator": ours, "critic": other, "step": 3}, "generator."),
        (lambda ours, other: {"generator": other, "generator_ema": ours}, "generator_ema."),
        (lambda ours, other: {"state_dict": behind("module.", ours)}, "state_dict.module."),
        (lambda ours, other: {"model": ours, "optimizer": {"state": {0: {"m": other}}}}, "model."),
        (lambda ours, other: {"net": other, "net_ema": ours, "fake_score": other}, "net_ema."),
    ],
)
@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_files_of_torch_save_are_read_as_tensors_alone(
    base: Path,
    exact: Tensors,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: Any,
    chosen: str,
    ending: str,
) -> None:
    other = {name: torch.zeros_like(tensor) for name, tensor in original(exact).items()}
    path = tmp_path / f"x{ending}"
    torch.save(content(original(exact), other), path)
    assert_same(loaded(path, base), exact)
    check_student(path, "sgmd", base=base, quiet=False)
    assert (f"behind '{chosen}'" in capsys.readouterr().err) is bool(chosen)


@pytest.mark.parametrize(
    ("ending", "per_row", "extra"), CONVENTIONS.values(), ids=list(CONVENTIONS)
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_three_conventions_of_scales(
    base: Path,
    exact: Tensors,
    tmp_path: Path,
    ending: str,
    per_row: bool,
    extra: Tensors,
    prefix: str,
) -> None:
    path = tmp_path / "x.safetensors"
    stored = quantised(exact, ending, per_row, extra)
    save_file(behind(prefix, stored), path)
    got = loaded(path, base)
    assert_same(got, exact, tolerance=2**-4)
    name = "blocks.1.ffn.net.0.proj.weight"
    by_hand = stored["blocks.1.ffn.0.weight"].float() * stored[f"blocks.1.ffn.0{ending}"]
    assert torch.equal(got[name], by_hand) and not torch.equal(got[name], exact[name])
    # ZeRO-3 and the text encoder's streaming read slices.
    reader = check_student(path, "sgmd", base=base).model.transformer_weights()
    assert torch.equal(reader.read(name, 30, 1000), by_hand.flatten()[30:1000])
    assert torch.equal(reader.tensor(name), by_hand)


def test_8_bit_floats_without_scales_are_their_values(
    base: Path, exact: Tensors, tmp_path: Path
) -> None:
    narrow = {n: t.to(FP8) if t.ndim == 2 else t for n, t in exact.items()}
    save_file(narrow, tmp_path / "x.safetensors")
    assert_same(loaded(tmp_path / "x.safetensors", base), {n: t.float() for n, t in narrow.items()})


def test_other_quantisations_are_named(base: Path, exact: Tensors, tmp_path: Path) -> None:
    stored = original(exact) | {"blocks.0.ffn.0.weight": torch.zeros(64, 24, dtype=torch.uint8)}
    stored["blocks.0.ffn.0.weight_scale"] = torch.zeros(64, 3)
    save_file(stored, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="blocks.0.ffn.0.weight is stored as U8 .* is not read"):
        check_student(tmp_path / "x.safetensors", "sgmd", base=base)


@pytest.mark.parametrize(
    ("extra", "variant"),
    [
        ("blocks.0.to_gate_compress.weight", "video sparse attention"),
        ("blocks.0.attn2.add_k_proj.weight", "image-to-video model"),
        ("vace_blocks.0.attn1.to_q.weight", "a VACE model"),
    ],
)
def test_a_variant_is_named(
    base: Path, exact: Tensors, tmp_path: Path, extra: str, variant: str
) -> None:
    save_file(exact | {extra: torch.zeros(48, 48)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=f"holds weights of .*{variant}.*, such as {extra}"):
        check_student(tmp_path / "x.safetensors", "sgmd", base=base)


def test_values_that_are_not_finite_stop_the_python_api_too(
    base: Path, exact: Tensors, tmp_path: Path
) -> None:
    """A command stops when it writes a video; here nothing is written."""
    name = "blocks.0.ffn.net.2.bias"
    broken = exact | {name: torch.full_like(exact[name], float("nan"))}
    save_file(broken, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="x.safetensors: the network gave values that are not fin"):
        latents(tmp_path / "x.safetensors", base=base, assume_schedule="sgmd")


def in_shards(folder: Path, tensors: Tensors) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(tensors)
    for number in (1, 2):
        part = {name: tensors[name] for name in names[number - 1 :: 2]}
        save_file(part, folder / f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors")


def test_shards_without_an_index(base: Path, exact: Tensors, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "x")
    in_shards(folder / "transformer", exact)
    assert_same(loaded(folder, None), exact)
    second = folder / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    with pytest.raises(UserError, match="is one of 2 shards of a network; give the folder"):
        check_student(second, "sgmd", base=base)
    second.unlink()
    with pytest.raises(UserError, match="holds 1 of the 2 shards of diffusion_pytorch_model; copy"):
        check_student(folder, "sgmd")


def test_variants_and_other_file_names(base: Path, exact: Tensors, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "x")
    file = folder / WEIGHTS
    for name in ("diffusion_pytorch_model.fp16.safetensors", "model.safetensors"):
        file = file.rename(file.with_name(name))
        assert_same(loaded(folder, None), exact)
    shutil.copy(file, file.with_name("other.safetensors"))
    with pytest.raises(UserError, match="several variants of weights .*leave one in the folder"):
        check_student(folder, "sgmd")


CASES = [
    (format, dtype, size)
    for format in ("diffusers", "wan", "comfyui")
    for dtype in FORMATS[format].dtypes
    for size in ("5GB", "60KB")
    if not (format == "comfyui" and size != "5GB")
]


def latents(path: Path, **options: Any) -> Tensor:
    size: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 5, "decode": False}
    return load_student(path, **options).generate("a red circle", 3, **size).latents


@pytest.mark.slow
def test_every_export_runs_in_generate(base: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", base, 20)
    expected = None
    for format, dtype, shard in CASES:
        out = tmp_path / f"{format}-{dtype}-{shard}"
        export(tmp_path / "run", format, out, dtype=dtype, max_shard_size=shard, quiet=True)
        got = latents(out)
        expected = got if dtype == "fp32" and expected is None else expected
    assert expected is not None
    for format, dtype, shard in CASES:
        out = tmp_path / f"{format}-{dtype}-{shard}"
        got = latents(out)
        off = ((got - expected).norm() / expected.norm()).item()
        limit = {"fp32": 1e-6, "fp16": 5e-3, "bf16": 3e-2, "fp8": 0.15}[
            dtype.removesuffix("-legacy")
        ]
        assert off <= limit, (format, dtype, shard, off)
    assert expected is not None
    index = tmp_path / "wan-fp32-60KB" / "diffusion_pytorch_model.safetensors.index.json"
    assert latents(index).equal(expected)
    assert latents(tmp_path / "wan-fp32-60KB", base=base).equal(expected)
    lora = export(tmp_path / "run", "lora", tmp_path / "lora", rank=4, quiet=True)
    with pytest.raises(UserError, match="is a LoRA; give its teacher as --weights, and add --lora"):
        check_student(lora)


def test_a_network_whose_teacher_is_elsewhere_asks_for_a_base(base: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", base, 20)
    out = export(tmp_path / "run", "wan", tmp_path / "out", quiet=True)
    about = json.loads((out / "lightx2v_sgmd.json").read_text())
    about["teacher"] = "someone/private"
    (out / "lightx2v_sgmd.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"its teacher someone/private.*add --base DIR"):
        check_student(out)
    assert check_student(out, base=base).model.path == str(out)
    with pytest.raises(UserError, match="leave out --base"):
        check_student(base, "sgmd", base=base)
    assert open_wan(out, base).transformer_config["num_layers"] == 2
