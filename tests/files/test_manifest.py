"""The manifest beside weights: what is saved is read back, and what is wrong is named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.files.manifest import FILE_NAME, Manifest, changed_files, read_manifest
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.students import manifest_of


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    about = replace(manifest_of(Schedule()), sha256={"a": "0"}, teacher_dtype="bfloat16")
    for scale in (None, 3.5):
        about = replace(about, guidance_scale_2=scale)
        about.write(tmp_path)
        assert read_manifest(tmp_path) == about
        assert ("guidance_scale_2" in about.to_dict()) is (scale is not None)
    assert read_manifest(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version: 2 is not the 1 that this version reads"),
        ({"format": "onnx"}, "format: 'onnx' is not one of diffusers, wan, comfyui, lora"),
        ({"teacher_dtype": "int8"}, "teacher_dtype: 'int8' is not one of float32, bfloat16"),
        ({"step": None}, "cannot be read: .*; export the weights again"),
        ({"guidance_scale": float("nan")}, "guidance_scale is not a finite number"),
        ({"guidance_scale_2": float("inf")}, "guidance_scale_2 is not a finite number"),
        ({"video": {"height": 0, "width": 1, "num_frames": 1, "fps": 8}}, "video height 0 is not"),
    ],
)
def test_a_value_that_cannot_be_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Manifest.from_dict(manifest_of(Schedule()).to_dict() | change)


def test_a_missing_key_names_file_and_key(tmp_path: Path) -> None:
    saved = manifest_of(Schedule()).to_dict()
    del saved["schedule"]
    (tmp_path / FILE_NAME).write_text(json.dumps(saved))
    with pytest.raises(UserError, match=rf"{FILE_NAME}: schedule: is missing; export"):
        read_manifest(tmp_path)


def test_missing_and_changed_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"whole")
    (tmp_path / "b").write_bytes(b"changed")
    whole = hashlib.sha256(b"whole").hexdigest()
    assert changed_files(tmp_path, {"a": whole, "b": whole, "c": whole}) == [
        "b has changed since it was written (sha256)",
        "c is missing",
    ]
