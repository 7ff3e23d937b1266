"""Every refusal says what to do: a clause begins with a verb, or another text stands at its end."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("lightx2v_sgmd", "distill", "infer", "weights")
VERBS = (
    "add allow ask attach break change check choose close convert copy correct cut divide drop end "
    "evaluate export fill first free get give install keep leave let load look lower make measure "
    "mount move name pair pass pip point push put quote raise read reinstall remove rename repair "
    "replay report restore resume run save say see serve set shorten show split start train try "
    "unset update use wait wire write"
).split()
REMEDY = re.compile(rf"; \{{\}}|(?:[;,:] |\bor |\band |\bthen )(?:{'|'.join(VERBS)})\b")
"""A remedy in a message: a clause that begins with a verb, or is another text."""
PASSED_ON = re.compile(r": \{\}\W*$|^\{\}$")
"""The end of a message that is another text, which has the remedy."""
FRAGMENTS = tuple(
    f"lightx2v_sgmd/{name}.py"
    for name in (
        # ``with_remedy`` ends these where the file is named: ``check_config`` and its like.
        "families/wan/original",
        *(
            f"untrusted/{part}"
            for part in (
                "cogvideox",
                "configs",
                "sd3",
                "sdxl",
                "sentencepiece_model",
                "tokenizer_json",
            )
        ),
    )
)


def messages(source: str) -> Iterator[tuple[int, str]]:
    """The literal texts of a source's refusals, with ``{}`` for each value in them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "UserError":
            for text in node.args:
                for part in (text.body, text.orelse) if isinstance(text, ast.IfExp) else (text,):
                    if isinstance(part, ast.JoinedStr | ast.Constant):
                        yield node.lineno, literal(part)


def literal(text: ast.JoinedStr | ast.Constant) -> str:
    if isinstance(text, ast.Constant):
        return str(text.value)
    return "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in text.values)


def helpless(source: str) -> list[tuple[int, str]]:
    """The messages of a source that leave the user without a remedy."""
    return [
        (line, text)
        for line, text in messages(source)
        if not REMEDY.search(text) and not PASSED_ON.search(text)
    ]


def test_every_refusal_has_a_remedy() -> None:
    found = []
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name not in FRAGMENTS:
                source = path.read_text(encoding="utf-8")
                found += [f"{name}:{line}: {text}" for line, text in helpless(source)]
    assert found == [], "say what to do, in a clause that begins with a verb"


@pytest.mark.parametrize(
    ("text", "is_helpless"),
    [
        ("seed: {x} is outside 0 ... 2^63 - 1", True),
        ("{path}: cannot be read ({strerror}); it is broken", True),
        ("{path}: is too large to be shown", True),
        ("seed: {x} is out of range; use 0 to 2^63 - 1", False),
        ("teacher.path: {error}", False),
    ],
)
def test_a_message_without_a_remedy_is_seen(text: str, is_helpless: bool) -> None:
    assert bool(helpless(f"raise UserError(f{text!r})")) == is_helpless


def test_the_fragments_are_there() -> None:
    assert [name for name in FRAGMENTS if not (ROOT / name).is_file()] == []
