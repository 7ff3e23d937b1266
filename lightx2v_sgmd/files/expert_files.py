"""Reads off a file's name which of two experts its weights are for. Imports no PyTorch.

Programs and publishers write ``high_noise`` or ``low_noise`` into the name of the file or of its
folder: ``wan2.2_t2v_high_noise_14B_fp16.safetensors``, ``low_noise_model/x.safetensors``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def expert_of_file(path: Path) -> int | None:
    """The index of the expert that a file is for: 0 for high noise, 1 for low noise, or None.

    The file's own name decides, then that of its folder.
    """
    for name in (path.name, path.parent.name):
        plain = re.sub(r"[^a-z]", "", name.lower())
        high, low = "highnoise" in plain, "lownoise" in plain
        if high != low:
            return int(low)
    return None


def expert_files(files: Sequence[Path]) -> tuple[Path, Path] | None:
    """The high-noise and the low-noise file of two; None if they are not one of each."""
    if len(files) != 2:
        return None
    by_expert = {expert_of_file(Path(path.name)): path for path in files}
    return (by_expert[0], by_expert[1]) if by_expert.keys() == {0, 1} else None
