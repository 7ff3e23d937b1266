"""The tables of docs/results are what the results beside them say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.apps.comparison.columns import markdown

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"
FOLDERS = ("methods", "equal_compute", "lambda", "fp8_storage")
KEYS = {
    "Frechet": "frechet",
    "all right": "all_attributes",
    "motion": "motion",
    "OptFlow": "optflow",
    "DynDeg": "dyndeg",
    "diversity": "diversity",
    "coverage": "coverage",
    "CPU s an iteration": "cpu_seconds",
    "forward equivalents": "equivalents",
}


def read_results(folder: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((RESULTS / folder / "results.json").read_text("utf-8"))
    return results


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_table_is_what_its_results_say(folder: str) -> None:
    assert (RESULTS / folder / "table.md").read_text("utf-8") == markdown(read_results(folder))


def cells_of(page: str, first: str) -> Iterator[tuple[str, str, str]]:
    """Row, column and text of the table whose first column has this head."""
    lines = page[page.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    heads, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    for name, *values in rows:
        yield from ((name, head, text) for head, text in zip(heads[1:], values, strict=True))


@pytest.mark.parametrize(
    ("first", "folder"),
    [
        ("at equal iterations", "methods"),
        ("at DMD2's compute", "equal_compute"),
        ("lambda", "lambda"),
        ("quantize", "fp8_storage"),
    ],
)
def test_the_pages_tables_are_the_results_rounded(first: str, folder: str) -> None:
    own, methods = read_results(folder)["rows"], read_results("methods")["rows"]
    compared = 0
    for name, head, text in cells_of((RESULTS / "README.md").read_text("utf-8"), first):
        label = re.split(r",| \(", name)[0]
        row = own.get(f"sgmd {first}={name}") or own.get(label) or methods[label]
        if text:
            found = (row.get("cost", {}) | row["equal_iterations"])[KEYS[head]]
            for number, key in zip(text.split(" ± "), ("mean", "std"), strict=False):
                half = 0.5 * 10.0 ** -len(number.partition(".")[2])
                assert abs(float(number) - found[key]) <= half + 1e-9, (name, head, key)
            compared += 1
    assert compared > 20


def test_adapters_beside_8_bits_close_nine_tenths_of_the_gap_of_full_precision() -> None:
    found = json.loads((RESULTS / "fp8_storage" / "gained_share.json").read_text("utf-8"))
    right = {row: sum(values) for row, values in found["right_on_everything"].items()}
    gained = {row: right[row] - right["undistilled"] for row in ("full", "other")}
    assert found["share_kept"] == pytest.approx(gained["other"] / gained["full"])
    assert len(found["seeds"]) == 5 and found["interval_95"][0] > 0.9
    page = (RESULTS / "README.md").read_text("utf-8")
    low, high = (f"{100 * value:.0f}" for value in found["interval_95"])
    assert f"{100 * found['share_kept']:.0f} % of it, 95 % interval {low} to {high} %" in page
