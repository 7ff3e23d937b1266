"""The progress bar of a part's loading, for parts that are large enough to wait for."""

from __future__ import annotations

from contextlib import AbstractContextManager
from math import prod
from typing import Final

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.system.console import Bar, progress

_SHOWN_FROM: Final = 5 * 10**8
"""Parts of fewer parameters are loaded before anybody has read a line about it."""


def network_bar(model: Model, quiet: bool) -> AbstractContextManager[Bar]:
    """A bar for loading the transformer, one step for each block and one for the rest."""
    layers = model.num_blocks
    parameters = sum(map(prod, model.transformer_shapes().values()))
    return progress(1 + layers, "loading the network", quiet or parameters < _SHOWN_FROM)


def encoder_bar(model: Model, quiet: bool) -> AbstractContextManager[Bar]:
    """The same for the text encoder."""
    config = model.expected_text_encoder_config()
    layers, vocabulary = int(config["num_layers"]), int(config["vocab_size"])
    parameters = int(config["d_model"]) * (3 * layers * int(config["d_ff"]) + vocabulary)
    return progress(1 + layers, "loading the text encoder", quiet or parameters < _SHOWN_FROM)
