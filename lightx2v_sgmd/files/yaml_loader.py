"""The one YAML loader: YAML 1.2's core types, no duplicate keys, and the line of every key.

PyYAML alone reads ``1e-6`` as text, ``no`` as false and ``1:30`` as 90, and lets the last of two
equal keys win; in a job each of these is a silent mistake.

A *tree* is nested dicts, lists and scalars; a *key* is a dotted path such as ``train.seed``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.paths import text_problem
from lightx2v_sgmd.untrusted.reading import read_text

# Each type's pattern and the characters that its values can begin with (YAML 1.2, core schema).
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


_MAX_BYTES: Final = 200_000  # a job with its comments
_MAX_NODES: Final = 5_000  # values of a job, those that aliases repeat included; a full job has 150
_MAX_DEPTH: Final = 16
_MAX_KEY: Final = 200
_MAX_DIGITS: Final = 40
_HOW: Final = "write a job as keys and values, such as 'teacher: ...'"
_PATTERNS: Final = {name: re.compile(f"(?:{pattern})") for name, pattern, _ in _CORE_TYPES}
_TAG: Final = "tag:yaml.org,2002:"
_TAGS: Final = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core types and with limits.

    Aliases count as often as what they name: nine lines can stand for a thousand million values.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str) -> None:
        self._nodes, self._depth = 0, 0
        self._sizes: dict[int, int] = {}
        if len(text) > _MAX_BYTES:
            reason = f"has {len(text):,} characters, more than the {_MAX_BYTES:,} that are read"
            raise yaml.YAMLError(reason)
        super().__init__(text)

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Limits the depth of brackets: PyYAML's time grows with its square."""
        if self.flow_level >= _MAX_DEPTH:
            self._refuse(f"is nested more than {_MAX_DEPTH} deep", self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Composes a node as PyYAML does, within the limits."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                self._refuse("an alias stands within what it names", event.start_mark)
            self._count(self._sizes[id(node)], event.start_mark)
            return node
        self._check_scalar(event)
        before = self._nodes
        self._count(1, event.start_mark)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._refuse(f"is nested more than {_MAX_DEPTH} deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._nodes - before
        return node

    def _count(self, more: int, mark: Any) -> None:
        self._nodes += more
        if self._nodes > _MAX_NODES:
            self._refuse(f"has more than the {_MAX_NODES:,} values that are read", mark)

    def _check_scalar(self, event: Any) -> None:
        tag, mark = getattr(event, "tag", None), event.start_mark
        if tag not in (None, "!") and tag not in _TAGS:
            self._refuse(f"has the tag {tag}; leave it out", mark)
        if not isinstance(event, yaml.ScalarEvent):
            return
        pattern = _PATTERNS.get(str(tag).removeprefix(_TAG))
        if pattern is not None and not pattern.fullmatch(event.value):
            self._refuse(f"{event.value!r} is no {str(tag).removeprefix(_TAG)}", mark)
        if len(event.value) > _MAX_DIGITS and _PATTERNS["int"].fullmatch(event.value):
            self._refuse(f"a number has {len(event.value):,} digits", mark)
        if problem := text_problem(event.value, _MAX_BYTES):
            self._refuse(f"a text {problem}", mark)

    def _refuse(self, problem: str, mark: Any) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Writes equal values out each time: a job should read without ``&id001``."""
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Puts text in double quotes where PyYAML would write a line break that reads as a space."""
    style = '"' if set(text) & set("\x85\u2028\u2029") else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _represent_text)
for _class in (_Loader, _Dumper):
    for _name, _pattern, _first in _CORE_TYPES:
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first
        )


def read_tree(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Reads a YAML file whose top level is a mapping.

    Returns:
        The tree, and the line (from 1) of every key.

    Raises:
        UserError: the file is unreadable, not YAML, not a mapping, or gives a key twice.
    """
    return parse_tree(read_text(path, _MAX_BYTES), str(path))


def parse_tree(text: str, source: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Parses YAML text whose top level is a mapping; returns and raises as ``read_tree``.

    Args:
        text: The YAML.
        source: The origin of the text; error messages begin with it.
    """
    lines: dict[str, int] = {}
    tree = _load(text, source, lines)
    if tree is None:
        raise UserError(f"{source}: is empty; {_HOW}")
    if not isinstance(tree, dict):
        kind = "a list" if isinstance(tree, list) else "a single value"
        raise UserError(f"{source}: holds {kind}; {_HOW}")
    return tree, lines


def parse_value(text: str, source: str) -> Any:
    """Parses one YAML value, as after ``--set key=``; nothing at all is the empty text.

    Raises:
        UserError: the text is not YAML; the message begins with ``source``.
    """
    return _load(text, source) if text.strip() else ""


def _load(text: str, source: str, lines: dict[str, int] | None = None) -> Any:
    """Loads the value that ``text`` stands for; None if it is empty.

    Args:
        text: The YAML.
        source: The origin of the text.
        lines: Receives the line of every key, and then no key may be given twice.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if lines is not None:
                _note_lines(node, "", lines, source)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UserError(_yaml_problem(source, error)) from None
    except RecursionError:
        raise UserError(
            f"{source}: is nested too deeply, or within itself; write it in fewer levels"
        ) from None


def dump_tree(tree: dict[str, Any], width: int = 100) -> str:
    """Returns YAML that ``read_tree`` reads back as the same tree; keys keep their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


def _note_lines(node: yaml.Node | None, prefix: str, lines: dict[str, int], source: str) -> None:
    """Records the line of each key below ``node``, and refuses a key that is given twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            continue
        key = f"{prefix}{key_node.value}"
        line = key_node.start_mark.line + 1
        if len(key) > _MAX_KEY:
            raise UserError(
                f"{source}:{line}: {key[:40]}...: is too long to be a key of a job; correct it"
            )
        if key in lines:
            raise UserError(
                f"{source}:{line}: {key}: given twice, first in line {lines[key]}; keep one"
            )
        lines[key] = line
        _note_lines(value_node, f"{key}.", lines, source)


def _yaml_problem(source: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if mark is None:
        return f"{source}: not valid YAML: {problem}; correct it"
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    return f"{source}: not valid YAML in {where}: {problem}; correct it there"
