"""The values of a YAML of LightX2V's trainer, and those of the job that is made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightx2v_sgmd.job.checking import Tree
from lightx2v_sgmd.system.errors import UserError, with_remedy


@dataclass
class Theirs:
    """The values of their file by dotted key."""

    tree: Mapping[str, Any]
    path: Path
    lines: Mapping[str, int]
    values: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.values = {}
        self._flatten(self.tree, "")

    def _flatten(self, tree: Mapping[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, Mapping) and value:
                self._flatten(value, f"{prefix}{key}.")
            else:
                self.values[f"{prefix}{key}"] = value

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default that their code has."""
        return self.values.get(key, default)

    def where(self, key: str) -> str:
        """``FILE:LINE KEY`` of a key, or of the section that it is left out of."""
        section = key
        while section and section not in self.lines:
            section = section.rpartition(".")[0]
        line = f":{self.lines[section]}" if section else ""
        return f"{self.path}{line} {key}"

    def refuse(self, key: str, problem: str) -> UserError:
        """The refusal of a value."""
        return UserError(f"{self.where(key)}: {with_remedy(problem, 'correct it')}")

    def number(self, key: str, default: float) -> float:
        """A number, or the default that their code has."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, f"{value!r} is not a number")
        if not math.isfinite(value):
            raise self.refuse(key, f"{value!r} is not a finite number")
        return value


@dataclass
class Ours:
    """The job's values as they come together."""

    theirs: Theirs
    tree: Tree = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, origin: str) -> None:
        """Sets a key of the job, for a key of theirs."""
        *sections, last = key.split(".")
        tree = self.tree
        for section in sections:
            tree = tree.setdefault(section, {})
        tree[last] = value
        given = origin in self.theirs.values
        self.origins[key] = self.theirs.where(origin) + ("" if given else ", its default there")

    def copy(self, key: str, origin: str, default: Any = None) -> None:
        """Sets a key of the job to the value of theirs; leaves it out if there is none."""
        value = self.theirs.get(origin, default)
        if value is not None:
            self.set(key, value, origin)
