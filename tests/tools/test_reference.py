"""Generated pages of docs/reference/ are current, and the tables of all pages are even."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.reference import generate, job
from tools.reference.pages import FOLDER, table

PAGES = sorted(FOLDER.parent.rglob("*.md"))

# A cell ends at a bar without a backslash before it, in code too.
CELL_END = re.compile(r"(?<!\\)\|")
RULE = re.compile(r"[| :-]+-[| :-]+")
"""The line below a table's head."""


def test_the_page_of_the_job_is_current() -> None:
    assert job.PAGE.read_text(encoding="utf-8") == job.page(), "run python -m tools.reference.job"


def test_every_key_of_a_job_is_explained() -> None:
    rows = [line.split(" | ") for line in job.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row[0] for row in rows if row[-1].strip(" |") == ""] == []


def test_the_page_of_generate_is_current() -> None:
    current = generate.PAGE.read_text(encoding="utf-8")
    assert current == generate.page(), "run python -m tools.reference.generate"


def uneven_rows(text: str) -> list[str]:
    """The rows of a page's tables that have more or fewer cells than their table's head."""
    uneven, cells = [], 0
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for row, below in zip(rows, [*rows, ""][1:], strict=True):
        count = len(CELL_END.findall(row))
        cells = count if RULE.fullmatch(below) else cells
        uneven += [row] if count != cells else []
    return uneven


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_rows_of_a_table_have_the_cells_of_its_head(page: Path) -> None:
    assert uneven_rows(page.read_text(encoding="utf-8")) == []


def test_an_uneven_row_is_seen() -> None:
    good = table(("key", "values"), [("`a`", "`X|none`"), ("`b`", "path")])
    assert good == "| key | values |\n|---|---|\n| `a` | `X\\|none` |\n| `b` | path |\n"
    assert uneven_rows(good) == []
    assert uneven_rows(good.replace("\\|", "|")) == ["| `a` | `X|none` |"]
