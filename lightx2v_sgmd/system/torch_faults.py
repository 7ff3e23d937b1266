"""Known faults of PyTorch releases that cost much time or memory, and their remedies."""

from __future__ import annotations

from typing import Final

import torch

_CONV3D_MENDED_BY_CUDNN: Final = 91500


def cudnn_version() -> int:
    """The version of cuDNN as one number, 91501 for 9.15.1, or 0 where PyTorch has none."""
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version or 0


def slow_conv3d(device: torch.device) -> str | None:
    """A line about PyTorch 2.9's slow 3D convolutions if a device has them, otherwise None.

    PyTorch 2.9 does 3D convolutions in bfloat16 and float16 without cuDNN
    (github.com/pytorch/pytorch, issue 166643); 2.9.1 uses cuDNN again if its version is at least
    9.15.
    """
    release = torch.__version__.partition("+")[0]
    if device.type != "cuda" or torch.version.cuda is None or not release.startswith("2.9."):
        return None
    if release != "2.9.0" and cudnn_version() >= _CONV3D_MENDED_BY_CUDNN:
        return None
    return (
        f"PyTorch {release} computes 3D convolutions in bfloat16 and float16 slowly and with much "
        "memory (pytorch issue 166643); use another release of PyTorch, or 2.9.1 with cuDNN 9.15"
    )
