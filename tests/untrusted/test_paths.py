"""Paths and texts that cannot be written are refused with their reason."""

from __future__ import annotations

import pytest

from lightx2v_sgmd.untrusted.paths import path_problem, text_problem


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("", "is empty"),
        ("a\0b", "holds a zero byte, which no file name may"),
        ("a/\udcff", "is not UTF-8 text"),
        ("a/\ud800", "holds half a character (U+D800)"),
        ("x/" * 2001, "has 4002 bytes, more than the 4000 of a path"),
        ("a/" + "x" * 226, "of 226 bytes, more than the 225 that fit"),
        ("y" * 256 + "/a", "of 256 bytes, more than the 255 that fit"),
    ],
)
def test_a_path_that_cannot_be(path: str, problem: str) -> None:
    assert problem in str(path_problem(path))


def test_a_path_that_can_be() -> None:
    assert path_problem("a/" + "x" * 225) is None and path_problem("x" * 255, spare=0) is None
    assert path_problem("y" * 255 + "/a") is None and path_problem("狐/走る.mp4") is None


def test_texts() -> None:
    assert text_problem("x" * 10, 10) is None
    assert text_problem("x" * 1001, 1000) == "has 1,001 characters, more than 1,000"
    assert text_problem("a\0", 10) == "holds a zero byte"
    assert "U+DBFF" in str(text_problem("\udbff", 10))
