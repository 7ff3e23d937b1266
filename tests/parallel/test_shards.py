from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightx2v_sgmd.parallel.shards import SlicedTensors, WholeTensors, owned


@pytest.mark.parametrize("numel", [1, 2, 7, 8, 30])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_slices_cover_a_tensor_once(numel: int, size: int) -> None:
    spans = [owned(numel, rank, size) for rank in range(size)]
    covered = [i for start, stop in spans for i in range(start, stop)]
    assert covered == list(range(numel))


def test_slices_of_whole_tensors(tmp_path: Path) -> None:
    tensor = torch.arange(30.0).view(5, 2, 3)
    save_file({"w": tensor, "b": torch.arange(4.0)}, tmp_path / "a.safetensors")
    reader = WholeTensors([tmp_path / "a.safetensors"])
    for start, stop in [(0, 30), (0, 1), (29, 30), (5, 13), (6, 12), (9, 9)]:
        assert torch.equal(reader.read("w", start, stop), tensor.flatten()[start:stop])
    assert reader.read("b", 1, 3).tolist() == [1, 2]


@pytest.mark.parametrize(("saved_by", "read_by"), [(1, 3), (3, 2), (4, 1), (8, 2)])
def test_another_number_of_processes_reads_the_same(
    tmp_path: Path, saved_by: int, read_by: int
) -> None:
    tensor = torch.arange(7.0)
    files = []
    for rank in range(saved_by):
        start, stop = owned(7, rank, saved_by)
        files.append(tmp_path / f"{rank}.safetensors")
        save_file({"w": tensor[start:stop].clone()}, files[-1])
    reader = SlicedTensors(files)
    parts = [reader.read("w", 7, *owned(7, rank, read_by)) for rank in range(read_by)]
    assert torch.equal(torch.cat(parts), tensor)
