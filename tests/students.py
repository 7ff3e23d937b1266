"""Students for tests, on the CPU unless a test names another device.

The engine's own default is the GPU where there is one, in bfloat16 and compiled, which is not what
tests compare with float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import infer
from infer import Student


def load_student(path: str | Path, **options: Any) -> Student:
    """As ``infer.load_student``, by default on the CPU."""
    return infer.load_student(path, **{"device": "cpu", **options})
