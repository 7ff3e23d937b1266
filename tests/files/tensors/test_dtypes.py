"""The table of element types agrees with PyTorch and with the safetensors library."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save

from lightx2v_sgmd.files.tensors.dtypes import (
    BITS,
    FILE_NAMES,
    OPTIONS,
    TORCH_NAMES,
    TORCH_TYPES,
    torch_type,
)


@pytest.mark.parametrize("name", TORCH_TYPES)
def test_names_and_sizes_are_those_of_the_library(name: str) -> None:
    dtype = TORCH_TYPES[name]
    content = save({"x": torch.zeros(8).to(dtype)})
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    first, end = header["x"]["data_offsets"]
    assert header["x"]["dtype"] == name == FILE_NAMES[dtype]
    assert BITS[name] == end - first == dtype.itemsize * 8  # eight elements: bytes are bits


def test_options_and_jobs_name_the_same_types() -> None:
    assert OPTIONS == {
        "fp32": torch.float32,
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
    }
    assert {name: torch_type(full) for name, full in TORCH_NAMES.items()} == OPTIONS
