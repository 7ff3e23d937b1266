"""Exports pass tensor by tensor."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightx2v_sgmd.files.tensors.safetensors_files import TensorInfo
from tests.tiny import make_tiny_wan
from tests.weights.conftest import write_checkpoint
from weights import export
from weights.io import network, tensors
from weights.opening import open_source


@pytest.mark.slow
@pytest.mark.parametrize(("format", "dtype"), [("diffusers", None), ("wan", "fp8")])
def test_only_a_few_tensors_are_in_memory_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, dtype: str | None
) -> None:
    """Counted over writing, reading back and the forward passes: not the network, some layers."""
    write_checkpoint(tmp_path / "run", make_tiny_wan(tmp_path / "teacher", layers=20), 5)
    alive: dict[int, int] = {}
    most = 0
    real = tensors.read_tensor

    def counted(info: TensorInfo) -> Tensor:
        nonlocal most
        tensor = real(info)
        key = id(tensor)
        alive[key] = tensor.nbytes
        weakref.finalize(tensor, alive.pop, key, None)
        most = max(most, sum(alive.values()))
        return tensor

    for module in (tensors, network):
        monkeypatch.setattr(module, "read_tensor", counted)
    gc.collect()
    export(tmp_path / "run", format, tmp_path / "out", dtype=dtype, quiet=True)
    opened: Any = open_source(tmp_path / "run", ema=True).tensors
    sizes = [4 * torch.Size(shape).numel() for shape in opened.shapes.values()]
    assert 0 < most <= 4 * max(sizes) < sum(sizes) / 4
