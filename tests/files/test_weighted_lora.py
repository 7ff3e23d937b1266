"""LoRA files that somebody names, and their strengths."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.files.weighted_lora import WeightedLora
from lightx2v_sgmd.system.errors import UserError


def test_paths_and_strengths_are_read() -> None:
    assert WeightedLora.parse("a.safetensors") == WeightedLora(Path("a.safetensors"), 1.0)
    assert WeightedLora.parse("a.safetensors:0.8") == WeightedLora(Path("a.safetensors"), 0.8)
    with pytest.raises(UserError, match="'much' is not a strength"):
        WeightedLora.parse("a.safetensors:much")


def test_a_folder_stands_for_the_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "style.safetensors").write_bytes(b"")
    assert WeightedLora.parse(f"{tmp_path}:-1") == WeightedLora(tmp_path / "style.safetensors", -1)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert WeightedLora.parse(str(tmp_path)).path == tmp_path / "adapter_model.safetensors"
