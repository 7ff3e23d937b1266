"""Folders of latents from strangers; those that are used are in ``distill/test_pretraining.py``."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.files.latents import LatentFolder
from lightx2v_sgmd.system.errors import UserError

ONE = {"x0": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}


def shard(folder: Path, about: str | None, tensors: dict[str, Any]) -> None:
    metadata = {} if about is None else {"lightx2v_sgmd": about}
    header = json.dumps({"__metadata__": metadata, **tensors}).encode()
    data = struct.pack("<Q", len(header)) + header + b"\0" * 4
    (folder / "latents_0.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        (None, "cannot be read"),
        ("[" * 100_000, "nested more than 8 deep"),
        ("[]", "does not say how it was made"),
        ("{}", "does not say how it was made"),
        ('{"prompts": 1, "origin": {}}', "no list of captions"),
        ('{"prompts": [1], "origin": {}}', "no list of captions"),
        ('{"prompts": ["a \\ud800"], "origin": {}}', "a caption holds half a character"),
        ('{"prompts": ["a", "b"], "origin": {}}', "2 captions for latents"),
    ],
)
def test_a_shard_that_says_nothing_sound(tmp_path: Path, about: str | None, reason: str) -> None:
    shard(tmp_path, about, ONE)
    with pytest.raises(UserError, match=f"data.latents: .*latents_0.safetensors .*{reason}"):
        LatentFolder(tmp_path)


def test_a_million_million_rows_of_nothing(tmp_path: Path) -> None:
    nothing = {"dtype": "F32", "shape": [10**12, 0], "data_offsets": [0, 0]}
    shard(tmp_path, '{"prompts": ["a"], "origin": {}}', {"x0": nothing, "y": {**ONE["x0"]}})
    with pytest.raises(UserError, match="1 captions for latents"):
        LatentFolder(tmp_path)


def test_a_sound_shard_is_read(tmp_path: Path) -> None:
    shard(tmp_path, '{"prompts": ["a"], "origin": {}}', ONE)
    assert LatentFolder(tmp_path).prompts == ["a"]
