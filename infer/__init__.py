"""The application that runs students: weights in, videos out.

Everything is loaded on first use, so that ``infer.options`` can be imported without PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lightx2v_sgmd.system.lazy import lazy_names

if TYPE_CHECKING:
    from infer.batch.generate_files import SomeFailed, generate, generate_files
    from infer.batch.ledger import Outcome
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
    "Outcome": "infer.batch.ledger",
    "SomeFailed": "infer.batch.generate_files",
    "Student": "infer.engine",
    "Video": "infer.result",
    "generate": "infer.batch.generate_files",
    "generate_files": "infer.batch.generate_files",
    "load_student": "infer.engine",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, globals())
