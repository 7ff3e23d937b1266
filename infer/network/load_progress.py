"""The progress bar of a part's loading, for parts that are large enough to wait for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from math import prod
from typing import Any, Final

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.system.console import Bar, progress

_ENCODERS: Final = "text_encoder"
"""The names of a model's text encoders begin with this."""
_SHOWN_FROM: Final = 5 * 10**8
"""Parts of fewer parameters are loaded before anybody has read a line about it."""


def network_bar(model: Model, quiet: bool) -> AbstractContextManager[Bar]:
    """A bar for loading the transformer, one step for each block and one for the rest."""
    layers = model.num_blocks
    parameters = sum(map(prod, model.transformer_shapes().values()))
    return progress(1 + layers, "loading the network", quiet or parameters < _SHOWN_FROM)


def encoder_bar(model: Model, quiet: bool) -> AbstractContextManager[Bar]:
    """The same for the text encoder, or for the several that a model has."""
    whole = model.expected_text_encoder_config()
    configs = [each for part, each in whole.items() if part.startswith(_ENCODERS)] or [whole]
    steps = sum(1 + _layers(config) for config in configs)
    parameters = sum(map(_parameters, configs))
    return progress(steps, "loading the text encoder", quiet or parameters < _SHOWN_FROM)


def _layers(config: Mapping[str, Any]) -> int:
    """Number of layers of an encoder: T5's or CLIP's."""
    return int(config["num_layers"] if "num_layers" in config else config["num_hidden_layers"])


def _parameters(config: Mapping[str, Any]) -> int:
    """About the number of parameters of an encoder: T5's or CLIP's."""
    layers, vocabulary = _layers(config), int(config["vocab_size"])
    if "d_model" in config:
        return int(config["d_model"]) * (3 * layers * int(config["d_ff"]) + vocabulary)
    width = int(config["hidden_size"])
    return width * (2 * layers * int(config["intermediate_size"]) + vocabulary)
