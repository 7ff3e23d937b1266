"""The distillation methods by name, those of installed packages included."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.methods.base import Losses, Method, Sample
from lightx2v_sgmd.methods.sgmd import SGMD

__all__ = ["SGMD", "Losses", "Method", "Sample", "build_method", "method_names"]

REGISTRY: dict[str, Callable[..., Method]] = {"sgmd": SGMD}
ENTRY_POINT_GROUP = "lightx2v_sgmd.methods"


def method_names() -> list[str]:
    """Every method that a job can name: the project's own and those of installed packages."""
    return sorted({*REGISTRY, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def build_method(name: str, **options: Any) -> Method:
    """Builds a method from a job's options.

    Raises:
        UserError: no method has that name.
    """
    if name in REGISTRY:
        return REGISTRY[name](**options)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            method: Method = point.load()(**options)
            return method
    raise UserError(f"method.name: {name!r} is unknown; use one of {', '.join(method_names())}")
