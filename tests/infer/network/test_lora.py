from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from infer import Lora
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.students import load_student
from tests.tiny import make_tiny_wan
from tests.weights.conftest import write_checkpoint
from weights import export

pytest.importorskip("peft")
SIZE: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base model, a student of it as a folder, and the same student as adapters of full rank."""
    base = tmp_path_factory.mktemp("lora")
    teacher = make_tiny_wan(base / "teacher")
    write_checkpoint(base / "run", teacher, 20)
    whole = export(base / "run", "diffusers", base / "whole", dtype="fp32", quiet=True)
    adapters = export(base / "run", "lora", base / "lora", dtype="fp32", rank=48, quiet=True)
    return teacher, whole, adapters


def latents(path: Path, **options: Any) -> torch.Tensor:
    return load_student(path, **options).generate("a red circle", 3, decode=False, **SIZE).latents


@pytest.mark.slow
@pytest.mark.parametrize("merge", [False, True])
def test_an_exported_lora_on_its_base_is_the_student(
    trained: tuple[Path, Path, Path], merge: bool
) -> None:
    base, whole, adapters = trained
    expected = latents(whole)
    lora = Lora.parse(str(adapters))
    got = latents(base, loras=(lora,), merge_lora=merge)
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=0)
    plain = latents(base, assume_schedule="sgmd")
    assert (plain - expected).abs().max() > 0.05
    # Strength 0 is the base; a half is neither.
    none = latents(base, loras=(Lora(lora.path, 0.0),), merge_lora=merge)
    torch.testing.assert_close(none, plain, atol=1e-5, rtol=0)
    half = latents(base, loras=(Lora(lora.path, 0.5),), merge_lora=merge)
    assert min((half - plain).abs().max(), (half - expected).abs().max()) > 0.02


def test_merged_weights_can_be_fused_and_quantised(trained: tuple[Path, Path, Path]) -> None:
    base, _, adapters = trained
    lora = Lora.parse(str(adapters))
    merged = load_student(base, loras=(lora,), merge_lora=True)
    assert hasattr(merged.transformer.blocks[0].attn1, "to_qkv")
    assert not any("lora" in name for name, _ in merged.transformer.named_parameters())
    beside = load_student(base, loras=(lora,))
    assert not hasattr(beside.transformer.blocks[0].attn1, "to_qkv")
    with pytest.raises(UserError, match="quantize: LoRA layers stay beside .*--merge-lora"):
        load_student(base, loras=(lora,), quantize="fp8-storage")


def adapter(folder: Path, name: str = "x", **metadata: Any) -> Path:
    """A LoRA under diffusers' names, of rank 2, on one layer."""
    tensors = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.full((2, 48), 0.05),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.full((48, 2), 0.05),
    }
    path = folder / f"{name}.safetensors"
    save_file(tensors, path, metadata=metadata)
    return path


def test_two_files_add_up(trained: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path = adapter(tmp_path, **schedule_metadata(Schedule()))
    loras = (Lora(path, 0.5), Lora(path, 1.0))
    twice = load_student(trained[0], loras=loras, merge_lora=True, fuse_qkv=False)
    before = open_wan(trained[0]).load_transformer().blocks[0].attn1.to_q.weight
    after = twice.transformer.blocks[0].attn1.to_q.weight
    torch.testing.assert_close(after - before, torch.full((48, 48), 1.5 * 2 * 0.05**2))


def test_the_schedule_comes_from_the_file_or_the_flag(
    trained: tuple[Path, Path, Path], student: Path, tmp_path: Path
) -> None:
    silent = adapter(tmp_path, "silent")
    with pytest.raises(UserError, match="carry no schedule .* --assume-schedule sgmd"):
        load_student(trained[0], loras=(Lora(silent),))
    assert load_student(trained[0], loras=(Lora(silent),), assume_schedule="sgmd").schedule == (
        Schedule()
    )
    two = Schedule((1000.0, 500.0))
    other = adapter(tmp_path, "two", **schedule_metadata(two))
    assert load_student(trained[0], loras=(Lora(other),)).schedule == two
    with pytest.raises(UserError, match=r"two\.safetensors: says timesteps 1000/889 .* but .*says"):
        load_student(student, loras=(Lora(other),))
    shift6 = adapter(tmp_path, "six", **schedule_metadata(Schedule(shift=6.0)))
    with pytest.raises(UserError, match=r"six\.safetensors: the weights were distilled for"):
        load_student(trained[0], loras=(Lora(shift6),))


@pytest.mark.parametrize(
    ("key", "shape", "match"),
    [
        (
            "transformer.blocks.9.attn1.to_q.lora_A.weight",
            (2, 48),
            "blocks.9.attn1.to_q.lora_A.*no layer",
        ),
        ("transformer.blocks.0.attn1.to_q.lora_A.weight", (2, 96), r"\[2, 96\], .* \[2, 48\]"),
        ("diffusion_model.blocks.0.norm9.diff", (48,), "norm9.diff matches no layer"),
        ("diffusion_model.blocks.0.norm3.diff", (96,), r"norm2.weight is \[96\], .* \[48\]"),
        ("something.else", (4,), "something.else matches no layer"),
    ],
)
def test_a_file_for_another_model_is_refused(
    trained: tuple[Path, Path, Path], tmp_path: Path, key: str, shape: tuple[int, ...], match: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({key: torch.zeros(shape)}, path, metadata=schedule_metadata(Schedule()))
    with pytest.raises(UserError, match=match) as caught:
        load_student(trained[0], loras=(Lora(path),))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.safetensors: no such file"):
        load_student(make_tiny_wan(tmp_path), loras=(Lora(Path("a.safetensors")),))


def test_a_pickle_is_refused(trained: tuple[Path, Path, Path], tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is a pickle"):
        load_student(trained[0], loras=(Lora(tmp_path / "x.safetensors"),))
