"""Embeddings of two encoders stay apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.text.encoder_fingerprint import encoder_identity


def test_the_key_tells_encoders_apart(student: Path, tmp_path: Path) -> None:
    before = encoder_identity(open_wan(student), torch.float32)
    assert encoder_identity(open_wan(student), torch.bfloat16) != before
    moved = tmp_path / "moved"
    shutil.copytree(student, moved)
    assert encoder_identity(open_wan(moved), torch.float32) == before
    weights = moved / "text_encoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert encoder_identity(open_wan(moved), torch.float32) != before
