"""Helpers of the fuzz targets: files with an input as content, and JSON objects."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from lightx2v_sgmd.system.errors import UserError, short_lines
from lightx2v_sgmd.untrusted.json_text import CONFIG, parse_json


@cache
def folder() -> Path:
    """A folder for this process's files."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def named_file(name: str, content: bytes) -> Path:
    """A file with that content."""
    path = folder() / name
    path.write_bytes(content)
    return path


def json_object(data: bytes) -> dict[str, Any]:
    """The object that a configuration file holds."""
    try:
        content = parse_json(data, CONFIG)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(content, dict):
        raise UserError("is not an object")
    return content


def check_lines(error: UserError) -> None:
    """Checks that a refusal can be printed.

    Raises:
        AssertionError: it has no line, too many, or a line of more than 300 characters.
    """
    lines = short_lines(error.lines)
    assert 1 <= len(lines) <= 21, lines
    assert all(line and line.isprintable() and len(line) <= 280 for line in lines), lines
