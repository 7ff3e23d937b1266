"""Names are given to finished files in one module: this walks the source for other renames."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lightx2v_sgmd", "distill", "infer", "weights", "tools")
WRITER = "lightx2v_sgmd/outputs/writer.py"


def renames(source: str) -> Iterator[tuple[int, str]]:
    """The line and the text of each call that renames a file."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, given = node.func.attr, len(node.args)
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        # str.replace takes two arguments, dataclasses.replace keywords.
        of_path = not node.keywords and given == 1
        of_module = owner in ("os", "shutil") and name in ("rename", "renames", "replace", "move")
        if of_module or (name in ("rename", "replace") and of_path):
            yield node.lineno, ast.unparse(node)


def test_only_the_writer_renames() -> None:
    found = {
        f"{file.relative_to(ROOT).as_posix()}:{line}: {call}"
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        for line, call in renames(file.read_text(encoding="utf-8"))
        if file.relative_to(ROOT).as_posix() != WRITER
    }
    assert found == set(), "write files and folders with lightx2v_sgmd.outputs"


@pytest.mark.parametrize(
    "call",
    [
        "os.replace(a, b)",
        "os.rename(a, b)",
        "os.rename(a, dst=b)",
        "shutil.move(a, b)",
        "path.rename(target)",
        "(folder / name).replace(target)",
    ],
)
def test_a_rename_is_found(call: str) -> None:
    assert [line for line, _ in renames(call)] == [1]


@pytest.mark.parametrize(
    "call",
    [
        "text.replace('a', 'b')",
        "replace(job, seed=1)",
        "code.replace()",
        "dc.replace(a, b=1)",
    ],
)
def test_other_calls_are_not(call: str) -> None:
    assert list(renames(call)) == []
