"""The kinds of values that a stranger's configuration may have."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lightx2v_sgmd.system.errors import shortened


class Field(Protocol):
    """A kind of value of a configuration."""

    @property
    def wanted(self) -> str:
        """The description of the values that are allowed, for messages."""
        ...

    def allows(self, value: Any) -> bool:
        """Returns True if the value is allowed."""
        ...


@dataclass(frozen=True)
class Whole:
    """A whole number from ``low`` to ``high``."""

    low: int
    high: int

    @property
    def wanted(self) -> str:
        """See ``Field``."""
        return f"a whole number from {self.low} to {self.high}"

    def allows(self, value: Any) -> bool:
        """See ``Field``."""
        return type(value) is int and self.low <= value <= self.high


@dataclass(frozen=True)
class Real:
    """A finite number from ``low`` to ``high``."""

    low: float
    high: float

    @property
    def wanted(self) -> str:
        """See ``Field``."""
        return f"a number from {self.low:g} to {self.high:g}"

    def allows(self, value: Any) -> bool:
        """See ``Field``."""
        return type(value) in (int, float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Flag:
    """True or false."""

    wanted: str = "true or false"

    def allows(self, value: Any) -> bool:
        """See ``Field``."""
        return type(value) is bool


@dataclass(frozen=True)
class Choice:
    """One of a few texts."""

    values: tuple[str, ...]

    @property
    def wanted(self) -> str:
        """See ``Field``."""
        return f"one of {', '.join(self.values)}"

    def allows(self, value: Any) -> bool:
        """See ``Field``."""
        return isinstance(value, str) and value in self.values


@dataclass(frozen=True)
class Text:
    """A text of at most ``most`` characters."""

    most: int

    @property
    def wanted(self) -> str:
        """See ``Field``."""
        return f"a text of at most {self.most} characters"

    def allows(self, value: Any) -> bool:
        """See ``Field``."""
        return isinstance(value, str) and len(value) <= self.most


@dataclass(frozen=True)
class Several:
    """A list of ``low`` to ``high`` values of one kind."""

    kind: Field
    low: int
    high: int

    @property
    def wanted(self) -> str:
        """See ``Field``."""
        count = str(self.low) if self.low == self.high else f"{self.low} to {self.high}"
        return f"a list of {count}, each {self.kind.wanted}"

    def allows(self, value: Any) -> bool:
        """See ``Field``."""
        return (
            isinstance(value, list | tuple)
            and self.low <= len(value) <= self.high
            and all(map(self.kind.allows, value))
        )


@dataclass(frozen=True)
class Either:
    """Any of several kinds."""

    kinds: tuple[Field, ...]

    @property
    def wanted(self) -> str:
        """See ``Field``."""
        return " or ".join(kind.wanted for kind in self.kinds)

    def allows(self, value: Any) -> bool:
        """See ``Field``."""
        return any(kind.allows(value) for kind in self.kinds)


@dataclass(frozen=True)
class Null:
    """The value null."""

    wanted: str = "null"

    def allows(self, value: Any) -> bool:
        """See ``Field``."""
        return value is None


@dataclass(frozen=True)
class LayerName:
    """A layer's name, which PEFT would read as a regular expression if it had more than names."""

    wanted: str = "a layer's name"

    def allows(self, value: Any) -> bool:
        """See ``Field``."""
        return isinstance(value, str) and _LAYER.fullmatch(value) is not None


@dataclass(frozen=True)
class ByLayer:
    """One value for each of at most 4,096 layers."""

    kind: Field

    @property
    def wanted(self) -> str:
        """See ``Field``."""
        return f"for each layer {self.kind.wanted}"

    def allows(self, value: Any) -> bool:
        """See ``Field``."""
        return (
            isinstance(value, dict)
            and len(value) <= 4096
            and all(map(LayerName().allows, value))
            and all(map(self.kind.allows, value.values()))
        )


_LAYER: Final = re.compile(r"\^?[A-Za-z0-9_]+(?:\\?\.[A-Za-z0-9_]+)*")


def optional(kind: Field) -> Either:
    """Returns the kind that also allows null."""
    return Either((kind, Null()))


def shown(value: Any) -> str:
    """Describes a stranger's value for a message, which never shows all of a large one."""
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"a list of {len(value)}"
    if isinstance(value, int) and not -(10**18) < value < 10**18:
        return f"about 10^{math.log10(abs(value)):.0f}"
    return shortened(ascii(value), 60)


def first_problem(
    config: Mapping[str, Any], fields: Mapping[str, Field], needed: frozenset[str] = frozenset()
) -> str | None:
    """Describes the first value of a configuration that is not allowed; None if all are.

    Args:
        config: The configuration; keys that ``fields`` does not have are ignored.
        fields: The kind of each value.
        needed: The keys that must exist.
    """
    for key, kind in fields.items():
        if key not in config and key in needed:
            return f"{key} is missing, and must be {kind.wanted}"
        if key in config and not kind.allows(config[key]):
            return f"{key} is {shown(config[key])}, not {kind.wanted}"
    return None
