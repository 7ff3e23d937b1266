"""Tensors arrive whole, in their precision, whatever the pieces they travel in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightx2v_sgmd.files.tensors import tensor_copy
from lightx2v_sgmd.files.tensors.tensor_copy import WeightCopier
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.system.errors import UserError

CPU = torch.device("cpu")
TENSORS = {
    "wide": torch.randn(7, 33),
    "half": torch.randn(5, 3, 2).bfloat16(),
    "double": torch.randn(11).double(),
    "none": torch.zeros(0, 4),
    "number": torch.tensor(3.5),
}


@pytest.mark.parametrize("piece", [16, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_tensors_are_read_in_pieces_and_cast(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    piece: int,
    dtype: torch.dtype,
    suffix: str,
) -> None:
    monkeypatch.setattr(tensor_copy, "PIECE_BYTES", piece)
    file = tmp_path / f"x.{suffix}"
    if suffix == "pth":
        torch.save(TENSORS, file)
    else:
        save_file(TENSORS, file)
    reader, copier = WholeTensors([file]), WeightCopier(CPU)
    for name, expected in TENSORS.items():
        got = reader.load(name, dtype, copier)
        assert got.dtype == dtype and got.shape == expected.shape
        assert torch.equal(got, expected.to(dtype))
        got += 1  # a copy: the file is not changed
        assert torch.equal(reader.load(name, dtype, copier), expected.to(dtype))


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1000)}, file)
    reader = WholeTensors([file])
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="ends within a tensor"):
        reader.load("a", torch.float32, WeightCopier(CPU))


def test_a_pinned_buffer_is_filled_again_only_when_it_has_been_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order of a GPU's copies, rehearsed with events that only take notes."""
    said: list[str] = []

    class Event:
        def __init__(self) -> None:
            self.name = f"buffer {sum(s.startswith('new') for s in said)}"
            said.append(f"new {self.name}")

        def record(self, stream: object) -> None:
            said.append(f"copied from {self.name}")

        def synchronize(self) -> None:
            said.append(f"wait for {self.name}")

    monkeypatch.setattr(tensor_copy, "PIECE_BYTES", 16)
    monkeypatch.setattr(tensor_copy, "_event", Event)
    monkeypatch.setattr(tensor_copy, "_new_buffer", lambda pinned: torch.empty(16).byte())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    copier = WeightCopier(torch.device("meta"))
    copier._pinned = True

    def read(piece: torch.Tensor, start: int) -> None:
        said.append(f"read {len(piece)} from {start}")

    copier.copy(read, (10,), torch.float32, torch.float32)
    copier.copy(read, (1,), torch.float32, torch.float32)
    assert said == [
        "new buffer 0",
        "read 4 from 0",
        "copied from buffer 0",
        "new buffer 1",
        "read 4 from 4",
        "copied from buffer 1",
        "wait for buffer 0",
        "read 2 from 8",
        "copied from buffer 0",
        "wait for buffer 0",
        "read 1 from 0",
        "copied from buffer 0",
    ]
