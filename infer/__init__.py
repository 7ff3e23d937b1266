"""The application that runs students: weights in, videos out.

Everything is loaded on first use, so that ``infer.options`` can be imported without PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from infer.batch.generate_files import Outcome, SomeFailed, generate, generate_files
    from infer.engine import Student, load_student
    from infer.options import GenerateOptions, Lora, Options
    from infer.result import Cancelled, Generation, Video

__all__ = [
    "Cancelled",
    "GenerateOptions",
    "Generation",
    "Lora",
    "Options",
    "Outcome",
    "SomeFailed",
    "Student",
    "Video",
    "generate",
    "generate_files",
    "load_student",
]

_HOMES: Final = {
    "Cancelled": "infer.result",
    "GenerateOptions": "infer.options",
    "Generation": "infer.result",
    "Lora": "infer.options",
    "Options": "infer.options",
    "Outcome": "infer.batch.generate_files",
    "SomeFailed": "infer.batch.generate_files",
    "Student": "infer.engine",
    "Video": "infer.result",
    "generate": "infer.batch.generate_files",
    "generate_files": "infer.batch.generate_files",
    "load_student": "infer.engine",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
