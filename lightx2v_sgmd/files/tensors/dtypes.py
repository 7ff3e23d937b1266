"""The one table of element types: their sizes and their names in files, jobs and options.

Files of safetensors say ``BF16``, jobs and PyTorch ``bfloat16``, the options of ``generate`` and
``export`` ``bf16``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch


@dataclass(frozen=True)
class ElementType:
    """One element type under all its names.

    Attributes:
        file_name: The name in the header of a safetensors file.
        bits: The size of one element.
        torch_name: PyTorch's name, which jobs use too; None if such tensors are never loaded.
        option: The name in command-line options; None if no option takes the type.
    """

    file_name: str
    bits: int
    torch_name: str | None = None
    option: str | None = None


_TABLE: Final = (
    ElementType("F64", 64, "float64"),
    ElementType("F32", 32, "float32", "fp32"),
    ElementType("F16", 16, "float16", "fp16"),
    ElementType("BF16", 16, "bfloat16", "bf16"),
    ElementType("F8_E4M3", 8, "float8_e4m3fn"),
    ElementType("F8_E5M2", 8, "float8_e5m2"),
    ElementType("F8_E8M0", 8),
    ElementType("C64", 64),
    ElementType("I64", 64, "int64"),
    ElementType("I32", 32, "int32"),
    ElementType("I16", 16, "int16"),
    ElementType("I8", 8, "int8"),
    ElementType("U64", 64),
    ElementType("U32", 32),
    ElementType("U16", 16),
    ElementType("U8", 8, "uint8"),
    ElementType("BOOL", 8, "bool"),
)

BITS: Final = {row.file_name: row.bits for row in _TABLE}
"""Bits of one element, by the name in safetensors files; a file with any other type is refused."""

TORCH_TYPES: Final[dict[str, torch.dtype]] = {
    row.file_name: getattr(torch, row.torch_name) for row in _TABLE if row.torch_name
}
"""PyTorch's types by their names in safetensors files."""

FILE_NAMES: Final = {dtype: name for name, dtype in TORCH_TYPES.items()}
"""Names in safetensors files by PyTorch's types."""

OPTIONS: Final = {row.option: TORCH_TYPES[row.file_name] for row in _TABLE if row.option}
"""PyTorch's types by their names in command-line options: the types that networks run in."""

TORCH_NAMES: Final = {row.option: str(row.torch_name) for row in _TABLE if row.option}
"""PyTorch's names by the names in command-line options."""

RUN_TYPES: Final = tuple(row.file_name for row in _TABLE if row.option)
"""The types, as safetensors files name them, of weights that the engine runs."""

FLOAT_TYPES: Final = ("F64", *RUN_TYPES)
"""The types, as safetensors files name them, of weights that a teacher is loaded from."""


def torch_type(name: str) -> torch.dtype:
    """Returns PyTorch's type of a name that jobs use, such as ``bfloat16``."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype
