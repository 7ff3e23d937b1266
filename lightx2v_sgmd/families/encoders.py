"""The protocols of what encodes prompts and images for a family's networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from lightx2v_sgmd.families.conditioning import Embedding

# B batch, C channels, H, W pixels


class PromptEncoder(Protocol):
    """The tokenizers and text encoders of a model, loaded."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that reads most of a prompt: ``Model.text_length`` tokens."""
        ...

    @property
    def prompts_at_once(self) -> int:
        """Prompts to encode in a call: 1, or several where each call reads weights from a file."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[Embedding]:
        """Embeds each prompt; a prompt's embedding does not depend on the others."""
        ...


class ImageEncoder(Protocol):
    """Makes the tensors of a network's conditioning from an image."""

    def encode(self, image: Any, size: tuple[int, int, int]) -> dict[str, Tensor]:
        """The tensors for one video by name, on the CPU, without a batch dimension.

        Args:
            image: Pillow's RGB image.
            size: Height, width and number of frames of the video.
        """
        ...
