"""Strict YAML: the YAML 1.2 core types, no duplicate keys, and the line of every key.

PyYAML alone reads ``1e-6`` as text, ``no`` as false and ``1:30`` as 90, and lets the last of two
equal keys win; in a job each of these is a silent mistake.

A *tree* is nested dicts, lists and scalars; a *key* is a dotted path such as ``train.seed``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lightx2v_sgmd.errors import UserError

# Type by pattern and by the characters a value of it can begin with (YAML 1.2, core schema).
_CORE_TYPES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out each time: a job should read without ``&id001``."""
        return True


for _class in (_Loader, _Dumper):
    for _name, _pattern, _first in _CORE_TYPES:
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first
        )


def read_text(path: Path) -> str:
    """A text file's content, with or without a byte order mark.

    Raises:
        UserError: it is missing, a folder, unreadable or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8 text; "
            "save the file as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def read_tree(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A YAML file whose top level is a mapping.

    Returns:
        The tree, and the line (from 1) of every key.

    Raises:
        UserError: unreadable, not YAML, not a mapping, or with a key given twice.
    """
    text = read_text(path)
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[str, int] = {}
            _walk(node, "", lines, path)
            tree = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UserError(_yaml_problem(str(path), error)) from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply, or within itself") from None
    if tree is None:
        raise UserError(f"{path}: is empty; a job is a YAML mapping such as 'teacher: ...'")
    if not isinstance(tree, dict):
        kind = "a list" if isinstance(tree, list) else "a single value"
        raise UserError(f"{path}: holds {kind}; a job is a YAML mapping such as 'teacher: ...'")
    return tree, lines


def parse_value(text: str, what: str) -> Any:
    """One YAML value, as after ``--set key=``; nothing at all is the empty text.

    Raises:
        UserError: not YAML; the message begins with ``what``.
    """
    if not text.strip():
        return ""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(_yaml_problem(what, error)) from None


def dump_tree(tree: dict[str, Any]) -> str:
    """YAML that ``read_tree`` reads back as the same tree; keys keep their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _walk(node: yaml.Node | None, prefix: str, lines: dict[str, int], path: Path) -> None:
    """Notes the line of each key below ``node``, refusing a key that is given twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            continue
        key = f"{prefix}{key_node.value}"
        line = key_node.start_mark.line + 1
        if key in lines:
            raise UserError(
                f"{path}:{line}: {key}: given twice, first in line {lines[key]}; keep one"
            )
        lines[key] = line
        _walk(value_node, f"{key}.", lines, path)


def _yaml_problem(where: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    if mark is None:
        return f"{where}: not valid YAML: {problem}"
    return f"{where}: not valid YAML in line {mark.line + 1}, column {mark.column + 1}: {problem}"
