"""Resolves ``${...}`` in a YAML as OmegaConf does."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.job.checking import Tree
from lightx2v_sgmd.system.errors import UserError

_MOST_DEPTH: Final = 8
_MOST_LOOKUPS: Final = 1000
"""Values of ``${...}`` that are put in, those of values that are put in included."""
_MARK: Final = "value-of-the-environment"
_WHOLE: Final = re.compile(r"\$\{([^${}]*)\}")


def resolve(tree: Tree, path: Path, environment: Mapping[str, str] | None = None) -> Tree:
    """The tree with ``${...}`` replaced as OmegaConf does: other keys and the environment.

    Args:
        tree: The values.
        path: The file that the messages name.
        environment: The variables; by default the process's.
    """
    variables = os.environ if environment is None else environment
    lookups = 0

    def look_up(name: str, depth: int) -> Any:
        nonlocal lookups
        lookups += 1
        if lookups > _MOST_LOOKUPS:
            raise UserError(
                f"{path}: more than {_MOST_LOOKUPS} values of ${{...}}; write the values"
            )
        if depth > _MOST_DEPTH:
            raise UserError(f"{path}: ${{{name}}} goes in a circle, or too deep; write the value")
        if name.startswith("oc.env:"):
            variable, comma, default = name.removeprefix("oc.env:").partition(",")
            value = variables.get(variable.strip(), default.strip() if comma else None)
            if value is None:
                raise UserError(f"{path}: ${{{name}}}: the environment has no {variable}; set it")
            return parse_value(value, f"{path}: ${{{name}}}")
        found: Any = tree
        for part in name.split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise UserError(f"{path}: ${{{name}}}: there is no such key; write the value")
            found = found[part]
        return resolved(found, depth + 1)

    def resolved(value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return {key: resolved(inner, depth) for key, inner in value.items()}
        if isinstance(value, list):
            return [resolved(inner, depth) for inner in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _WHOLE.fullmatch(value)
        if whole:
            return look_up(whole[1], depth)
        return _WHOLE.sub(lambda match: str(look_up(match[1], depth)), value)

    return {key: resolved(value, 0) for key, value in tree.items()}


def holds_environment(tree: Tree, path: Path, section: str, key: str) -> bool:
    """True if a variable of the environment is in the value of a section's key, by any way."""
    marked = resolve(tree, path, dict.fromkeys(os.environ, _MARK))
    values = marked.get(section)
    return isinstance(values, Mapping) and _MARK in str(values.get(key))
