"""The file that a folder of a LoRA stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.files.lora_folder import lora_file_in


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], None),
        (["other.safetensors"], "other.safetensors"),
        (["a.safetensors", "b.safetensors"], None),
        (["a.safetensors", "adapter_model.safetensors"], "adapter_model.safetensors"),
        (
            ["adapter_model.safetensors", "wan_pytorch_lora_weights.safetensors"],
            "wan_pytorch_lora_weights.safetensors",
        ),
        (["a.safetensors", "pytorch_lora_weights.safetensors"], "pytorch_lora_weights.safetensors"),
    ],
)
def test_the_file_for_most_programs_comes_first(
    tmp_path: Path, files: list[str], found: str | None
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert lora_file_in(tmp_path) == (None if found is None else tmp_path / found)
