"""Every export format is found by its name, and the manifest knows the same names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lightx2v_sgmd.files import manifest
from lightx2v_sgmd.system.errors import UserError
from weights.formats.base import Format
from weights.formats.registry import FORMATS, format_for, format_named


def test_names_lead_to_formats() -> None:
    assert tuple(FORMATS) == manifest.FORMATS
    for name, format in FORMATS.items():
        assert format_named(name) is format and format.name == name
        assert isinstance(format, Format) and "bf16" in format.dtypes
    assert [name for name, format in FORMATS.items() if format.holds_adapters] == ["lora"]


def test_adapters_of_some_families_have_one_naming() -> None:
    wan: Any = SimpleNamespace(pipeline=SimpleNamespace(portable_loras=True))
    sdxl: Any = SimpleNamespace(pipeline=SimpleNamespace(portable_loras=False))
    assert all(format_for(format, wan) is format for format in FORMATS.values())
    assert [f.name for f in FORMATS.values() if format_for(f, sdxl) is not f] == ["lora"]
    assert format_for(FORMATS["lora"], sdxl).usual_names == "diffusers"


def test_another_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"format: 'onnx' is unknown; use diffusers, wan, comfyui"):
        format_named("onnx")
