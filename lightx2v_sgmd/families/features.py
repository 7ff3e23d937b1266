"""Optional abilities of a family's networks, and the refusal of settings that need one.

Importing this imports no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lightx2v_sgmd.system.errors import UserError

if TYPE_CHECKING:
    from lightx2v_sgmd.families.base import Model

TakesImage = Literal["never", "optionally", "always"]
"""Says if a model's videos start from an image."""
Feature = Literal[
    "fast_blocks",
    "attention_kernels",
    "sequence",
    "streamed_decoding",
    "planned_memory",
    "loras",
]
"""Abilities of the engine and the trainer that the networks of some families only have.

``fast_blocks``: passes written for the family's blocks. ``attention_kernels``: other attention
kernels than PyTorch's. ``sequence``: several ranks share a video. ``streamed_decoding``: the VAE
decodes chunks of frames, and ranks share its tiles. ``planned_memory``: the engine knows its memory
beforehand. ``loras``: LoRA files are read. Compiled blocks and weights in 8 bits need none.
"""


def require_feature(model: Model, feature: Feature, what: str, remedy: str) -> None:
    """Refuses a setting that a model's family has not.

    Args:
        model: The model.
        feature: The feature that the setting needs.
        what: The setting, for the message: ``parallel.sequence: 2``.
        remedy: The value to use instead.

    Raises:
        UserError: the family lacks the feature.
    """
    if feature not in model.features:
        raise UserError(f"{what} is not supported for {model.family}; use {remedy}")
