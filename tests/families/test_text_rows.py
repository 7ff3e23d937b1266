"""One prompt and one teacher precision give the same rows, whoever asks, in whatever company."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightx2v_sgmd.families.text_rows import TextEncoder, text_dtype
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.manifest import Manifest, read_manifest
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.sampling.sampler import VideoSampler
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.encoding import embed, encode_prompts
from tests.students import load_student, make_student

PROMPTS = ["a red circle moving left", "a", "a blue square and a red circle moving right slowly"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("rows") / "student")


def in_training(folder: Path, dtype: torch.dtype, cache: Path | None) -> list[Tensor]:
    found = encode_prompts(open_wan(folder), PROMPTS, Ranks(), dtype, cache)
    return [each.text for each in found]


def in_generation(folder: Path, dtype: str, cache: Path | None) -> list[Tensor]:
    manifest = read_manifest(folder)
    assert manifest is not None
    replace(manifest, teacher_dtype=dtype).write(folder)
    found = load_student(folder, device="cpu", text_cache=cache).encode(PROMPTS)
    return [each.text for each in found]


def in_measuring(folder: Path, dtype: torch.dtype) -> list[Tensor]:
    """As ``compare``, ``collect-pairs`` and ``measure_teacher`` do."""
    sampler = VideoSampler(open_wan(folder), Schedule(), (32, 32, 5), dtype=dtype)
    sampler._encode(PROMPTS)
    return [sampler._rows[prompt].text for prompt in PROMPTS]


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_every_caller_has_the_same_rows(folder: Path, tmp_path: Path, name: str) -> None:
    dtype = text_dtype(name)
    assert str(dtype) == f"torch.{name}"
    expected = [open_wan(folder).load_text_encoder(dtype).rows([p])[0] for p in PROMPTS]
    embed(open_wan(folder), PROMPTS[::-1], Ranks(), dtype, tmp_path / "embed", quiet=True)
    for rows in (
        in_training(folder, dtype, None),
        in_training(folder, dtype, tmp_path / "train"),
        in_training(folder, dtype, tmp_path / "embed"),
        in_generation(folder, name, None),
        in_generation(folder, name, tmp_path / "generate"),
        in_generation(folder, name, tmp_path / "generate"),
        in_measuring(folder, dtype),
    ):
        for got, wanted in zip(rows, expected, strict=True):
            assert got.dtype == dtype and torch.equal(got, wanted)


def test_embed_and_generate_share_a_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = in_generation(folder, "float32", tmp_path / "generate")
    model, f32 = open_wan(folder), torch.float32
    embed(model, PROMPTS, Ranks(), f32, tmp_path / "embed", quiet=True)
    (entry, *_) = (tmp_path / "generate").glob("*/*.safetensors")
    save_file({"rows": torch.zeros(2, model.text_dim)}, tmp_path / entry.name)  # as once written
    old = tmp_path / "old" / entry.parent.name / entry.name
    old.parent.mkdir(parents=True)
    shutil.move(tmp_path / entry.name, old)
    for got, wanted in zip(in_generation(folder, "float32", old.parents[1]), expected, strict=True):
        assert torch.equal(got, wanted)

    def refuse(self: object, prompts: object) -> None:
        raise AssertionError(f"encoded {prompts}")

    monkeypatch.setattr(TextEncoder, "encode", refuse)
    for rows in (
        in_generation(folder, "float32", tmp_path / "embed"),
        in_training(folder, f32, tmp_path / "generate"),
        in_training(folder, f32, tmp_path / "old"),
    ):
        for got, wanted in zip(rows, expected, strict=True):
            assert torch.equal(got, wanted)
    assert embed(model, PROMPTS, Ranks(), f32, tmp_path / "generate", quiet=True).encoded == 0
    assert len(list((tmp_path / "generate").glob("*/rows_*"))) == 1  # what pruning keeps
    with pytest.raises(AssertionError, match="encoded"):
        in_generation(folder, "bfloat16", tmp_path / "embed")


def test_caches_tell_the_precisions_apart(folder: Path, tmp_path: Path) -> None:
    exact = in_generation(folder, "float32", tmp_path)
    rounded = in_generation(folder, "bfloat16", tmp_path)
    assert {row.dtype for row in exact} == {torch.float32}
    assert {row.dtype for row in rounded} == {torch.bfloat16}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_manifest_with_another_precision_is_refused(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    saved = {**manifest.to_dict(), "teacher_dtype": "float16"}
    with pytest.raises(UserError, match="teacher_dtype: 'float16' is not one of float32, bfloat16"):
        Manifest.from_dict(saved)


def test_weights_that_do_not_say_it_take_the_precision_they_run_in(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    replace(manifest, teacher_dtype=None).write(folder)
    for dtype, expected in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.bfloat16),  # umT5 overflows in float16
    ):
        student = load_student(folder, device="cpu", dtype=dtype)
        assert student.texts.dtype == expected
