"""The entries of a header that model managers read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lightx2v_sgmd.schedule import Schedule
from tests.students import manifest_of
from weights.io.model_spec import model_spec


@pytest.mark.parametrize("adapters", [True, False])
def test_an_export_is_named(adapters: bool) -> None:
    format = SimpleNamespace(holds_adapters=adapters)
    about = manifest_of(Schedule())
    spec: Any = SimpleNamespace(source=SimpleNamespace(about=about), format=format)
    told = model_spec(spec)
    assert told["modelspec.sai_model_spec"] == "1.0.0"
    assert told["modelspec.architecture"] == ("wan2.1/lora" if adapters else "wan2.1")
    assert told["modelspec.title"] == f"tiny, 4-step {'LoRA' if adapters else 'student'} by sgmd"
    assert told["modelspec.usage_hint"] == "4 Euler steps at shift 8, guidance scale 1"
    assert told["modelspec.resolution"] == "32x32"
