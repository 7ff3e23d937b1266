"""Docstrings and helps of options begin with their subject: a tooltip shows nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from lightx2v_sgmd.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("lightx2v_sgmd", "distill", "infer", "weights", "tools")
FRAGMENT = re.compile(r"(Of|Whether|What|Its)\b")
"""A line that begins with one of these says something about a thing that it does not name."""
MORE = re.compile(r"(How|Why|Who|Which|When|Their|Theirs|That|By|For|From|As|Between|Until|With)\b")
"""The same outside the tests, where a docstring does not go on with the name of a test."""
ENTRY = re.compile(rf"^ +[`\w*, ]+: {FRAGMENT.pattern}", re.MULTILINE)
"""An argument or attribute that is described so."""


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """The docstrings of modules, classes, functions and constants, with their lines."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", ())
        for each in body if isinstance(body, list) else ():
            if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
                if isinstance(each.value.value, str):
                    yield each.lineno, each.value.value.strip()


def fragments(source: str, is_test: bool = False) -> list[int]:
    """The lines of the docstrings that begin without a subject, or have such an entry."""
    return [
        line
        for line, text in docstrings(source)
        if FRAGMENT.match(text) or ENTRY.search(text) or (MORE.match(text) and not is_test)
    ]


@pytest.mark.parametrize("folder", [*SOURCES, "tests"])
def test_docstrings_begin_with_their_subject(folder: str) -> None:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        lines = fragments(path.read_text(encoding="utf-8"), folder == "tests")
        found += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
    assert found == [], f"begin these with a noun or a verb: {found}"


@pytest.mark.parametrize(
    "text",
    [
        '"""What it makes."""',
        'def f() -> int:\n    """Of the first video."""',
        'class A:\n    """A video.\n\n    Attributes:\n        name: Its name.\n    """',
        'A = 1\n"""Whether it is."""',
    ],
)
def test_a_fragment_is_seen(text: str) -> None:
    assert len(fragments(text, is_test=True)) == 1


def test_other_fragments_are_seen_outside_the_tests() -> None:
    text = '"""By the passes of an iteration."""'
    assert fragments(text) == [1]
    assert fragments(text, is_test=True) == []
    assert fragments('"""Formats weights. What is lost is said."""') == []


def helps(command: Any, path: str) -> Iterator[tuple[str, str]]:
    """The help of each option and argument of a command and of those below it."""
    for parameter in command.params:
        if getattr(parameter, "help", None) and not getattr(parameter, "hidden", False):
            yield f"{path} {parameter.name}", parameter.help
    for name, inner in getattr(command, "commands", {}).items():
        yield from helps(inner, f"{path} {name}")


def is_fragment(text: str) -> bool:
    return not text[0].isupper() or bool(FRAGMENT.match(text))


def test_helps_begin_with_a_noun_or_an_imperative() -> None:
    found = list(helps(typer.main.get_command(app), "lightx2v-sgmd"))
    assert len(found) > 150
    assert [name for name, text in found if is_fragment(text)] == []
    assert is_fragment("What to measure.") and is_fragment("auto: resume.")
