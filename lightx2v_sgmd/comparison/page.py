"""The comparison's report: one page with tables, curves and videos, and the contact sheet."""

from __future__ import annotations

from typing import Any

from lightx2v_sgmd.comparison.plan import Plan


def write_page(plan: Plan, results: dict[str, Any]) -> None:
    """Writes ``report.html`` and ``contact_sheet.png``."""
