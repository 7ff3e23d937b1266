"""The names of the attention kernels, where importing PyTorch would be too slow."""

from __future__ import annotations

from typing import Literal

Attention = Literal[
    "auto",
    "flash4",
    "flash3",
    "flash2",
    "xformers",
    "sdpa",
    "sdpa-cudnn",
    "sdpa-flash",
    "sdpa-efficient",
    "sage",
]
"""The values of ``--attention``; ``networks.attention.KERNELS`` has each of them but ``auto``."""
