"""Mutants of small modules, and what a run of mutation testing makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.checks.mutants import sites
from tools.checks.mutation import Finder, listed, names_of, reaching

SOURCE = '''"""A module."""
import math

LIMIT = 3


def area(width: int, height: int = 2) -> float:
    """Multiplies."""
    assert width > 0, "width"
    if width >= LIMIT:
        raise ValueError(f"{width} is too wide")
    return math.sqrt(width * height) - sum([1.0], start=0)
'''


def mutated(source: str, name: str) -> dict[str, Any]:
    """The names that a module defines once a mutant is in it."""
    tree, found = sites(source)
    found[names_of(found).index(name)].apply()
    defined: dict[str, Any] = {}
    exec(compile(tree, "mutant", "exec"), defined)
    return defined


def test_every_kind_of_place_once() -> None:
    _, found = sites(SOURCE)
    root = "math.sqrt(width * height)"
    assert names_of(found) == [
        "<module>: 3 → 4",
        "<module>: 2 → 3",
        "area: width >= LIMIT → not width >= LIMIT",
        "area: width >= LIMIT → width > LIMIT",
        "area: raise ValueError(f'{width} is too wide') → pass",
        f"area: return {root} - sum([1.0], start=0) → return None",
        f"area: {root} - sum([1.0], start=0) → {root} + sum([1.0], start=0)",
        f"area: {root} → width * height",
        "area: width * height → width / height",
        "area: sum([1.0], start=0) → [1.0]",
        "area: sum([1.0], start=0) → sum([1.0])",
        "area: 1.0 → 2.0",
        "area: 0 → 1",
    ]
    assert [site.at_import for site in found] == [True] * 2 + [False] * 11
    assert found[2].lines == (10, 10) and found[4].lines == (11, 11)


def test_an_applied_mutant_is_one_error() -> None:
    assert mutated(SOURCE, "<module>: 2 → 3")["area"](1) == pytest.approx(3**0.5 - 1)
    assert mutated(SOURCE, "area: width * height → width / height")["area"](2) == 0.0
    with pytest.raises(ValueError, match="2 is too wide"):
        mutated(SOURCE, "area: width >= LIMIT → not width >= LIMIT")["area"](2)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x.detach()", ["x.detach() → x"]),
        ("f(a, b)", ["f(a, b) → a", "f(a, b) → f(b, a)"]),
        ("max(a, b)", ["max(a, b) → a"]),
        ("zip(a, b, strict=True)", []),
        ("A(p=a, q=b)", ["A(p=a, q=b) → A(p=b, q=a)"]),
        ("not a", ["not a → a"]),
        ("a and b", ["a and b → a or b"]),
        ("a is b", ["a is b → a is not b"]),
        ("True", ["True → False"]),
        ("-a", ["-a → a"]),
        ("'text'", []),
    ],
)
def test_expressions(line: str, expected: list[str]) -> None:
    assert names_of(sites(f"y = {line}")[1]) == [f"<module>: {change}" for change in expected]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("with torch.no_grad():\n    x = y", "with torch.no_grad(): x = y → if True: x = y"),
        ("x += y", "Add → Sub"),
        ("for x in y:\n    break", "break → continue"),
        ("print(x)", "print(x) → pass"),
    ],
)
def test_statements(statement: str, expected: str) -> None:
    assert f"<module>: {expected}" in names_of(sites(statement)[1])


def test_equal_changes_are_numbered() -> None:
    assert names_of(sites("x = 1 + 1")[1])[1:] == ["<module>: 1 → 2", "<module>: 1 → 2 (2)"]


def test_a_module_is_found_by_its_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some_module.py").write_text("X = 1", encoding="utf-8")
    finder = Finder("some_module.py", lambda file: compile("X = 2", file, "exec"))
    assert finder.find_spec("another_module") is None
    spec = finder.find_spec("some_module")
    assert spec is not None and spec.loader is not None
    assert spec.origin == str(tmp_path / "some_module.py")
    assert "X" in spec.loader.get_code("some_module").co_names  # type: ignore[attr-defined]


def test_only_tests_that_reach_a_place_run_and_the_fastest_first() -> None:
    _, found = sites(SOURCE)
    baseline = {
        "lines": {"slow": [10, 12], "fast": [12], "other": [4]},
        "seconds": {"slow": 2.0, "fast": 1.0, "other": 0.5},
        "collecting": [],
    }
    by_line = {site.lines[0]: reaching(site, baseline) for site in found}
    assert by_line[4] == ["other", "fast", "slow"]  # importing the module runs it
    assert by_line[10] == ["slow"] and by_line[11] == [] and by_line[12] == ["fast", "slow"]
    assert reaching(found[4], {**baseline, "collecting": [11]}) == ["other", "fast", "slow"]


def test_the_page_s_reasons_name_mutants_that_exist() -> None:
    """Renamed code needs the page's items renamed."""
    names: dict[str, list[str]] = {}
    for path, mutant in listed():
        if path not in names:
            names[path] = names_of(sites(Path(path).read_text(encoding="utf-8"))[1])
        assert mutant in names[path], f"{path}: {mutant} is not a mutant any more"
    assert names
