"""A package's names are loaded when they are asked for, and then kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightx2v_sgmd.system.lazy import lazy_names


def test_a_name_is_loaded_once_and_kept() -> None:
    loaded: dict[str, Any] = {"own": 1}
    get, names = lazy_names("a", {"dumps": "json", "loads": "json"}, loaded)
    assert names() == ["dumps", "loads", "own"] and "dumps" not in loaded
    assert get("dumps") is json.dumps and loaded["dumps"] is json.dumps
    assert "loads" not in loaded


def test_another_name_is_the_usual_error() -> None:
    get, _ = lazy_names("a", {}, {})
    with pytest.raises(AttributeError, match="module 'a' has no attribute 'b'"):
        get("b")
