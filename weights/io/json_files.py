"""Small JSON files of an export: written, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightx2v_sgmd.untrusted.json_text import CONFIG, parse_json
from lightx2v_sgmd.untrusted.reading import read_file


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as people read it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def json_problems(path: Path, expected: Mapping[str, Any]) -> list[str]:
    """Lists the values of a JSON file that are not as expected; other keys are allowed."""
    try:
        content = parse_json(read_file(path, CONFIG.size), CONFIG)
        return [
            f"{path.name}: {key} is {content.get(key)!r}, not {value!r}"
            for key, value in expected.items()
            if content.get(key) != value
        ]
    except (OSError, ValueError, AttributeError) as error:
        return [f"{path.name} cannot be read: {error}"]
