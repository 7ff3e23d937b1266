"""Turns a job's YAML tree into its dataclasses, or into every mistake in it at once.

Three passes share one list of problems: keys that do not exist (with the nearest that does),
values of a wrong type or out of range, and rules over several values (``rules``). A rule is only
asked where every value it reads is valid, so no mistake is reported twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.job.rules import Rules
from lightx2v_sgmd.system.errors import UserError, joined

T = TypeVar("T")
Tree = dict[str, Any]
_MOST_KEY = 200
_MOST_HINTS = 20
"""Unknown keys that get a hint: finding one takes milliseconds."""


def yaml_name(name: str) -> str:
    """A field's key in YAML: ``lambda_`` is ``lambda``, which Python keeps for itself."""
    return name.rstrip("_")


def apply_override(tree: Tree, override: str) -> str:
    """Puts ``a.b=value`` into the tree and returns the key.

    Raises:
        UserError: not of that form, or the path leads through a value.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    shown = override if len(override) <= 100 else f"{override[:80]}..."
    if not equals or not all(key.split(".")) or len(key) > _MOST_KEY:
        raise UserError(f"--set {shown}: is not KEY=VALUE; write --set train.seed=1")
    *sections, last = key.split(".")
    for depth, section in enumerate(sections, start=1):
        inner = tree.get(section)
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            above = ".".join(sections[:depth])
            raise UserError(
                f"--set {shown}: {above} is a value, {inner!r}, not a section; set {above} itself"
            )
        tree = inner
    tree[last] = parse_value(text, f"--set {shown}")
    return key


def checked(
    kind: type[T],
    tree: Tree,
    origins: dict[str, str],
    source: str,
    rules: Rules,
    choices: Mapping[str, Callable[[Any], type]],
    names: Mapping[str, Any],
) -> T:
    """The dataclass that the tree describes.

    Args:
        kind: The job's class.
        tree: The values of the file and the overrides.
        origins: The place that set each key (``file:line`` or ``--set``), for the messages.
        source: The file, for keys that were set nowhere.
        rules: The rules over several values.
        choices: For sections that may be of several classes: which one a section's content means;
            it raises UserError if none, and None means the default.
        names: For the same sections, the ``name`` that the files give them.

    Raises:
        UserError: with a line for each mistake.
    """
    problems: list[tuple[str, str]] = []
    chosen_kinds = {}
    for name, choose in choices.items():
        try:
            chosen_kinds[name] = choose(tree.get(name))
        except UserError as error:  # nothing else in the section can be judged
            problems.append((f"{name}.name", str(error).removeprefix(f"{name}.name: ")))
            tree = {**tree, name: None}
            chosen_kinds[name] = choose(None)
    shape = Shape(kind, chosen_kinds)
    tree = _without_leftovers(shape, tree, origins, names, problems)
    clean = _known_part(shape, kind, tree, "", problems, known_keys(shape, kind))
    plain = {name: value for name, value in clean.items() if name not in choices}
    result = _validated(kind, plain, "", problems)
    variants = {
        name: _validated(inner, clean[name], f"{name}.", problems)
        for name, inner in shape.variants.items()
    }
    problems += _broken_rules(shape, clean, {key for key, _ in problems}, rules)
    if problems:
        lines = []
        for key, text in dict.fromkeys(problems):
            lines.append(f"{_origin(key, origins, source)}: {key}: {text}")
        raise UserError(*lines)
    assert result is not None, "no problem and no job"
    return replace(result, **variants)  # type: ignore[type-var]


def _without_leftovers(
    shape: Shape,
    tree: Tree,
    origins: dict[str, str],
    names: Mapping[str, Any],
    problems: list[tuple[str, str]],
) -> Tree:
    """The tree less the options of another choice than the section's ``name``.

    They are there if ``--set`` replaced the name alone: of files, one that names another choice
    than its base keeps none of the base's options. One problem names all of them.
    """
    for section, variant in shape.variants.items():
        content = tree.get(section)
        if not isinstance(content, dict) or origins.get(f"{section}.name") != "--set":
            continue
        name, own = content["name"], shape.hints(variant)
        set_in = {key: _file(_origin(f"{section}.{key}", origins, "")) for key in content}
        # What --set says is meant for the choice that is there, and so is all else if it is the
        # choice of the files: a slip in an option is no option of another.
        left = [key for key in content if key not in own and set_in[key] != "--set"]
        if not left or name == names[section]:
            continue
        problems.append(
            (
                f"{section}.name",
                f"{name} has no {joined(left)}, which {set_in[left[0]]} sets for another "
                f'{section}; replace the whole section: --set "{section}={{name: {name}}}"',
            )
        )
        tree = {**tree, section: {key: content[key] for key in content if key not in left}}
    return tree


def _file(origin: str) -> str:
    """The file of ``FILE:LINE``; another origin as it is."""
    file, colon, line = origin.rpartition(":")
    return file if colon and line.isdecimal() else origin


def _validated(kind: type[T], clean: Any, prefix: str, problems: list[tuple[str, str]]) -> T | None:
    """The dataclass, or None and what is wrong with it."""
    text = json.dumps(clean, default=str, skipkeys=True)
    try:
        # JSON has YAML's types, and read strictly it takes a list for a tuple but no "3" for a 3.
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        for key, problem in map(_explained, error.errors()):
            problems.append((f"{prefix}{key}".rstrip("."), problem))
    return None


@dataclass(frozen=True)
class Shape:
    """A job's class, and the class of each section that has several variants."""

    kind: type
    variants: Mapping[str, type]

    def hints(self, kind: type) -> dict[str, Any]:
        """Each field's type under its YAML key."""
        hints = get_type_hints(kind)
        if kind is self.kind:
            hints.update(self.variants)
        return {yaml_name(member.name): hints[member.name] for member in fields(kind)}


def known_keys(shape: Shape, kind: type, prefix: str = "") -> list[str]:
    """Every key of a job class, sections included, as dotted paths."""
    keys = []
    for name, inner in shape.hints(kind).items():
        keys.append(prefix + name)
        section, _ = _section(inner)
        if section is not None:
            keys += known_keys(shape, section, f"{prefix}{name}.")
    return keys


def _section(hint: Any) -> tuple[type | None, bool]:
    """The dataclass of a field that is a section, and whether the field may also be null."""
    kinds = [kind for kind in get_args(hint) or (hint,) if is_dataclass(kind)]
    return (kinds[0] if kinds else None), type(None) in get_args(hint)  # type: ignore[return-value]


def _known_part(
    shape: Shape,
    kind: type,
    tree: Tree,
    prefix: str,
    problems: list[tuple[str, str]],
    known: list[str],
) -> Tree:
    """The tree less its unknown keys, under field names; a section left out is an empty one."""
    hints = shape.hints(kind)
    for key in tree:
        if key not in hints:
            path = f"{prefix}{key}"
            hint = f"; {_nearest(path, known)}" if len(problems) < _MOST_HINTS else ""
            problems.append((path, f"unknown key{hint}"))
    clean: Tree = {}
    for member in fields(kind):
        key = yaml_name(member.name)
        (section, optional), value = _section(hints[key]), tree.get(key)
        if section is not None and not (optional and value is None):
            if value is None:
                value = {}
            if isinstance(value, dict):
                value = _known_part(shape, section, value, f"{prefix}{key}.", problems, known)
            clean[member.name] = value
        elif key in tree:
            clean[member.name] = value
    return clean


def _nearest(path: str, known: list[str]) -> str:
    """The hint for an unknown key: the same name elsewhere, a similar path, or what there is."""
    section, _, name = path.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    same = [key for key in known if key.rpartition(".")[2] == name]
    typo = [siblings[near] for near in get_close_matches(name, siblings, n=1)]
    similar = get_close_matches(path, known, n=1) if not siblings else []
    if found := same or typo or similar:
        return f"did you mean {' or '.join(found)}?"
    return f"{section or 'a job'} has {', '.join(siblings)}"


def _origin(key: str, origins: dict[str, str], source: str) -> str:
    """The place that set a key, or else a key below it, or the nearest section above it."""
    if key not in origins:
        key = next((other for other in origins if other.startswith(f"{key}.")), key)
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key, source)


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) > 16:
        return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else f"{text[:80]}..."


def _explained(error: ErrorDetails) -> tuple[str, str]:
    """A pydantic error as our key and words."""
    names = [part for part in error["loc"] if isinstance(part, str)]
    key = ".".join(yaml_name(name) for name in names)
    context, value = error.get("ctx", {}), error["input"]
    shown = "a section" if isinstance(value, dict) else _shown(value)
    match error["type"]:
        case "missing" if isinstance(error["loc"][-1], int):
            return key, "has too few values; add the others"
        case "string_too_long":
            return key, f"has more than {context['max_length']} characters; shorten it"
        case "too_long":
            return key, f"has too many values; give {context['max_length']}"
        case "missing":
            return key, "is missing; a job must give it"
        case "int_type" | "int_from_float" | "int_parsing":
            return key, f"{shown} is not a whole number; write one"
        case "float_type" | "float_parsing":
            return key, f"{shown} is not a number; write one"
        case "finite_number":
            return key, f"{shown} is not a finite number; write one"
        case "string_type" | "path_type":
            return key, f"{shown} is not text; put it in quotes if it is meant as text"
        case "bool_type" | "bool_parsing":
            return key, f"{shown} is neither true nor false; write one of them"
        case "literal_error":
            choices = context["expected"].replace("'", "")
            for word in ("False", "True"):
                choices = choices.replace(word, word.lower())
            return key, f"{shown} is not available; use {choices}"
        case "string_too_short":
            return key, "is empty"
        case "dataclass_type" | "dataclass_exact_type" | "model_attributes_type":
            return key, f"{shown} is not a section; give its settings indented below it"
        case "tuple_type" | "list_type":
            example = f"[{shown}]" if isinstance(error["input"], str) else "[0.0, 0.999]"
            return key, f"{shown} is not a list such as {example}"
        case "greater_than_equal":
            return key, f"{shown} is too small; use {context['ge']} or more"
        case "greater_than":
            return key, f"{shown} is too small; use more than {context['gt']}"
        case "less_than_equal":
            return key, f"{shown} is too large; use {context['le']} or less"
        case "less_than":
            return key, f"{shown} is too large; use less than {context['lt']}"
        case "value_error":
            return key, str(context["error"]).removeprefix(f"{key}.").removeprefix(f"{key}: ")
    return key, f"{shown}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _broken_rules(
    shape: Shape, clean: Tree, faulty: set[str], rules: Rules
) -> Iterator[tuple[str, str]]:
    for rule in rules:
        if any(_touches(key, faulty) for key in rule.keys):
            continue
        text = rule.problem(*(_value(shape, clean, key) for key in rule.keys))
        if text is not None:
            yield rule.keys[0], text


def _touches(key: str, faulty: set[str]) -> bool:
    return any(key == bad or key.startswith(f"{bad}.") for bad in faulty)


def _value(shape: Shape, clean: Tree, key: str) -> Any:
    """The value of a key, or its default."""
    kind: Any = shape.kind
    for name in key.split("."):
        member = next(member for member in fields(kind) if yaml_name(member.name) == name)
        if member.name in clean:
            kind, clean = shape.hints(kind)[name], clean[member.name]
        else:
            assert member.default is not MISSING, f"{key} has no default"
            return member.default
    return clean
