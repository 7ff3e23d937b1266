"""JSON of an export is compared with what was meant, key by key."""

from __future__ import annotations

from pathlib import Path

from weights.io.json_files import json_problems, write_json


def test_what_differs_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, {"dim": 8, "heads": 2, "more": None})
    assert json_problems(path, {"dim": 8, "heads": 2}) == []
    assert json_problems(path, {"dim": 9, "layers": 1}) == [
        "config.json: dim is 8, not 9",
        "config.json: layers is None, not 1",
    ]


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in ("{", "[1]"):
        path.write_text(content)
        (line,) = json_problems(path, {"dim": 8})
        assert line.startswith("config.json cannot be read: ")
    (line,) = json_problems(tmp_path / "missing.json", {})
    assert line.startswith("missing.json cannot be read: ")
