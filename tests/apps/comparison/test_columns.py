"""Numbers as the tables print them."""

from __future__ import annotations

from typing import Any

from lightx2v_sgmd.apps.comparison import tables
from lightx2v_sgmd.apps.comparison.columns import text


def test_text_of_a_value() -> None:
    value: dict[str, Any] = tables.spread([0.5, 0.7])
    assert text(value, 2) == "0.60 ± 0.14" and text(tables.spread([0.5]), 2) == "0.50"
    assert text(None, 2) == "-"
