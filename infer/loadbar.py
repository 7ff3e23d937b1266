"""The progress bar of a part's loading, for parts that are large enough to wait for."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from lightx2v_sgmd.console import Bar, progress
from lightx2v_sgmd.models.sources import Part
from lightx2v_sgmd.models.wan import WanModel

_SHOWN_FROM_BYTES: Final = 2**30
"""Smaller files are loaded before anybody has read a line about it."""
_LABELS: Final[dict[Part, str]] = {
    "transformer": "loading the network",
    "text_encoder": "loading the text encoder",
    "vae": "loading the VAE",
}


def loading_bar(
    model: WanModel, part: Part, steps: int, quiet: bool
) -> AbstractContextManager[Bar]:
    """A bar of ``steps`` for loading a part of a model; silent for a part of less than 1 GiB."""
    size = sum(file.stat().st_size for file in model.source.files(part))
    return progress(steps, _LABELS[part], quiet or size < _SHOWN_FROM_BYTES)
