"""Loads a text encoder as the memory allows: whole, or block by block from its file."""

from __future__ import annotations

from typing import Final

import torch

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.encoders import PromptEncoder
from lightx2v_sgmd.networks.block_loading import OnPart, blocks_of
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.host_memory import available_gib, refuse_too_large
from lightx2v_sgmd.system.quiet import no_library_bars

_WORKING_BYTES: Final = 2**29
"""The bytes that reading and running a block takes beside the block's weights."""
_BLOCKS: Final = 2
"""Blocks in memory while an encoder is streamed: one, and what the allocator has of the last."""


def load_encoder(
    model: Model,
    dtype: torch.dtype,
    device: torch.device,
    on_part: OnPart | None = None,
    stream: bool = False,
    quiet: bool = True,
) -> PromptEncoder:
    """Loads a model's text encoder; on a CPU that does not hold it, its blocks stay in their file.

    Args:
        model: The model.
        dtype: The precision of the encoder, from ``Model.text_dtype``.
        device: Device of the encoder.
        on_part: See ``Model.load_text_encoder``.
        stream: True leaves the blocks in their file even if the memory holds them.
        quiet: True does not say that the blocks stay there.

    Raises:
        UserError: the encoder is missing or damaged, or the memory holds not even one block.
    """
    if device.type == "cpu":
        whole, streamed = encoder_gib(model, dtype)
        if not stream and whole > available_gib():
            stream = True
            note(f"text encoder: {whole:.3g} GiB are read block by block, to save memory", quiet)
        if stream:
            refuse_too_large(
                streamed,
                f"{model.path}: encoding prompts",
                "close other programs, or compute the embeddings elsewhere (`lightx2v-sgmd embed`)",
            )
    with no_library_bars():
        return model.load_text_encoder(dtype, device, on_part, stream and device.type == "cpu")


def encoder_gib(model: Model, dtype: torch.dtype) -> tuple[float, float]:
    """The memory in GiB that a text encoder takes whole, and with its blocks in their file."""
    with torch.device("meta"):
        encoder = model.build_text_encoder()
    whole, streamed = encoder_parameters(encoder)
    return whole * dtype.itemsize / 2**30, (streamed * dtype.itemsize + _WORKING_BYTES) / 2**30


def encoder_parameters(encoder: torch.nn.Module) -> tuple[int, int]:
    """Numbers of an encoder's parameters, and of those that are in memory while it is streamed.

    Of several encoders those that are not T5 stay in memory whole.
    """
    parts = list(encoder.values()) if isinstance(encoder, torch.nn.ModuleDict) else [encoder]
    whole = streamed = 0
    for part in parts:
        count = sum(p.numel() for p in part.parameters())
        blocks = list(blocks_of(part).values())
        largest = max((sum(p.numel() for p in b.parameters()) for b in blocks), default=count)
        whole += count
        streamed += _BLOCKS * largest if blocks else count
    return whole, streamed
