"""Writes docs/reference/job.md from the comments on the job's fields.

python -m tools.reference.job            # writes the page
python -m tools.reference.job --check    # says if it is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
from pydantic.fields import FieldInfo

from lightx2v_sgmd.files.yaml_loader import dump_tree
from lightx2v_sgmd.job.checking import yaml_name
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.methods import REGISTRY
from tools.reference.pages import FOLDER, table, write

PAGE = FOLDER / "job.md"
INTRODUCTION = """\
# The job

<!-- Written by python -m tools.reference.job from lightx2v_sgmd/job and lightx2v_sgmd/methods. -->

A job is a YAML file. Unknown keys, wrong types and settings that do not go together are refused
before anything is loaded, every mistake of a file at once. `--set section.key=value` changes a
value from the command line.

A job may begin with `base: OTHER.yaml` and state only what differs. The base is a file beside it,
or a shipped job by its name, and may have a base itself. Sections are merged key by key; a list
replaces the base's list; a `method` with another name begins afresh. Paths in `data` are relative
to the file that states them. `lightx2v-sgmd job show JOB.yaml` prints the whole job and says where
each value comes from.
"""
METHOD = """\
## `method`

The distillation method and its options. Installed packages may add methods
([methods](../methods.md)).
"""
_NOT_SHOWN = re.compile(r".*\.name|method\.(adp|adm)\.discriminator.*")
"""Names of methods, and the discriminators of dmdx's stages, of which there is one above them."""


@dataclass(frozen=True)
class Key:
    """One row of the page."""

    name: str
    values: str
    default: str
    meaning: str


def comments(kind: type) -> dict[str, str]:
    """The comment above each field of a class and of its bases."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if not is_dataclass(cls):
            continue
        lines, above = textwrap.dedent(inspect.getsource(cls)).splitlines(), []
        for line in lines:
            text = line.strip()
            if text.startswith("#"):
                above.append(text.removeprefix("#").strip())
                continue
            name, colon, _ = text.partition(":")
            if colon and name.isidentifier() and line.startswith("    ") and above:
                found[name] = " ".join(above)
            above = []
    return found


def values_of(hint: Any) -> str:
    """The values that a field takes, in words."""
    if get_origin(hint) is Annotated:
        kind, *rest = get_args(hint)
        bounds = [bound for part in rest for bound in _bounds(part)]
        return ", ".join([values_of(kind), *bounds])
    if get_origin(hint) is Literal:
        return " or ".join(f"`{_yaml(value)}`" for value in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        parts = [values_of(part) for part in get_args(hint) if part is not NoneType]
        return " or ".join([*parts, "`null`"] if NoneType in get_args(hint) else parts)
    if get_origin(hint) is tuple:
        inner = [part for part in get_args(hint) if part is not Ellipsis]
        return f"list of {values_of(inner[0])}"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _bounds(part: Any) -> Iterator[str]:
    words = {
        annotated_types.Ge: ("ge", "at least {}"),
        annotated_types.Gt: ("gt", "above {}"),
        annotated_types.Le: ("le", "at most {}"),
        annotated_types.Lt: ("lt", "below {}"),
        annotated_types.MultipleOf: ("multiple_of", "a multiple of {}"),
    }
    for item in part.metadata if isinstance(part, FieldInfo) else [part]:
        if type(item) in words:
            name, text = words[type(item)]
            bound = getattr(item, name)
            yield text.format(f"{bound:g}" if abs(bound) < 1e6 else f"{bound:.0e}")


def _yaml(value: Any) -> str:
    text = dump_tree({"x": value}).removeprefix("x:").strip()
    return text if "\n" not in text else f"[{', '.join(map(str, value))}]"


def _default(item: Field[Any]) -> str:
    if item.default is MISSING:
        return "required"
    value = item.default
    if isinstance(value, float) and value and abs(value) < 1e-3:
        return f"`{value:g}`"
    return f"`{_yaml(list(value) if isinstance(value, tuple) else value)}`"


def section_of(hint: Any) -> type | None:
    """The dataclass of a field that is a section of the job."""
    for part in get_args(hint) or (hint,):
        if is_dataclass(part) and isinstance(part, type):
            return part
    return None


def keys(kind: type, prefix: str) -> Iterator[Key]:
    """The rows of a section and of the sections in it."""
    hints, texts = get_type_hints(kind, include_extras=True), comments(kind)
    for item in fields(kind):
        name, hint = f"{prefix}{yaml_name(item.name)}", hints[item.name]
        section = section_of(hint)
        if section is not None:
            if item.name in texts:
                yield Key(name, "section", "", texts[item.name])
            yield from keys(section, f"{name}.")
        else:
            yield Key(name, values_of(hint), _default(item), texts.get(item.name, ""))


def _table(rows: Sequence[Key]) -> str:
    cells = ((f"`{row.name}`", row.values, row.default, row.meaning) for row in rows)
    return table(("key", "values", "default", "meaning"), cells)


def _first_paragraph(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")


def page() -> str:
    """The text of docs/reference/job.md."""
    parts = [INTRODUCTION]
    hints = get_type_hints(Job, include_extras=True)
    for item in fields(Job):
        name = yaml_name(item.name)
        if name == "method":
            parts += [METHOD]
            for method, kind in REGISTRY.items():
                rows = [row for row in keys(kind, "method.") if not _NOT_SHOWN.fullmatch(row.name)]
                heading = f"### `method.name: {method}`"
                parts += [f"{heading}\n\n{_first_paragraph(kind)}\n", _table(rows)]
            continue
        section = section_of(hints[item.name])
        assert section is not None, f"{name} is no section"
        rows = list(keys(section, f"{name}."))
        parts += [f"## `{name}`\n\n{_first_paragraph(section)}\n", _table(rows)]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(write(PAGE, page(), __doc__))
