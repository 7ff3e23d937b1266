"""Files are those of the safetensors library, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightx2v_sgmd.files.tensors.safetensors_files import read_header
from lightx2v_sgmd.files.tensors.safetensors_writer import (
    Part,
    ShardWriter,
    TensorFile,
    split,
    write_tensors,
)
from lightx2v_sgmd.outputs import sha256_file


def test_a_file_is_what_the_library_writes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    content = {
        "z.odd": torch.randn(3, generator=generator).bfloat16(),
        "a": torch.randn(5, 7, generator=generator),
        "b.fp8": torch.randn(9, generator=generator).to(torch.float8_e4m3fn),
        "c.scalar": torch.tensor(2.5),
        "d.empty": torch.zeros(0, 4),
        "zz.half": torch.randn(1, 1, 3, generator=generator).half(),
    }
    file = TensorFile(
        tmp_path / "ours",
        [Part(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in content.items()],
        {"format": "pt"},
    )
    for name in reversed(content):  # in any order
        file.write(name, content[name])
    save_file(content, tmp_path / "theirs", {"format": "pt"})
    got = load_file(tmp_path / "ours")
    for name, tensor in content.items():
        assert torch.equal(got[name].float(), tensor.float()) and got[name].dtype == tensor.dtype
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    write_tensors(tmp_path / "at once", content, {"format": "pt"})
    assert (tmp_path / "at once").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_sequential_file_keeps_its_order_and_knows_its_hash(tmp_path: Path) -> None:
    content = {"z": torch.rand(3), "e": torch.zeros(0, 4), "a": torch.rand(()), "h": torch.rand(5)}
    parts = [Part(name, torch.float32, tuple(tensor.shape)) for name, tensor in content.items()]
    file = TensorFile(tmp_path / "x", parts, {"format": "pt"}, sequential=True)
    with pytest.raises(AssertionError, match="^e: "):  # not its turn
        file.write("e", content["e"])
    assert [file.write(*pair) for pair in content.items()] == [False, False, False, True]
    assert file.sha256 == sha256_file(tmp_path / "x")
    assert file.size == (tmp_path / "x").stat().st_size
    header = read_header(tmp_path / "x")
    assert list(header.tensors) == list(content)
    assert all(torch.equal(load_file(tmp_path / "x")[name], content[name]) for name in content)


def test_wrong_tensors_are_our_mistake(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "x", [Part("a", torch.float32, (2,))], {})
    with pytest.raises(AssertionError, match="a: torch.float64"):
        file.write("a", torch.zeros(2).double())
    with pytest.raises(AssertionError, match="a: torch.float32"):
        file.write("a", torch.zeros(3))


def test_shards_hold_everything_once(tmp_path: Path) -> None:
    parts = [Part(f"t{i}", torch.float32, (100,)) for i in range(10)]
    shards = split(parts, "model", "1KB")
    writer = ShardWriter(tmp_path, shards, parts, {}, "model.safetensors.index.json")
    for i, part in enumerate(parts):
        writer.write({part.name: torch.full((100,), float(i))})
    hashed = writer.finish()
    assert hashed == {path: sha256_file(path) for path in tmp_path.glob("*.safetensors")}
    assert len(hashed) > 1
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 5 and files[0].name == "model-00001-of-00005.safetensors"
    found: dict[str, Tensor] = {}
    for file in files:
        found |= load_file(file)
    assert all(found[f"t{i}"].eq(i).all() for i in range(10))
