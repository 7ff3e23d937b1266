"""Names of a package that are loaded on first use, so that importing the package stays quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str], loaded: dict[str, Any]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package that loads its names on first use.

    Args:
        package: The package's name, for messages.
        homes: The module of each name.
        loaded: The package's ``globals()``, which keep what was loaded.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        loaded[name] = getattr(import_module(homes[name]), name)
        return loaded[name]

    return get, lambda: sorted({*loaded, *homes})
