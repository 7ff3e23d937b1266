"""The protocols of what encodes prompts and images for a family's networks.

A video may start from an image; what a model says of that is a protocol here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.features import TakesImage
from lightx2v_sgmd.families.sources.parts import Part
from lightx2v_sgmd.networks.block_loading import Device

# T latent frames, h, w latent height and width


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


class ImageToVideo(Protocol):
    """The part of ``base.Model`` on images that its videos start from."""

    @property
    def takes_image(self) -> TakesImage:
        """Says if a video starts from an image: ``never``, ``optionally`` or ``always``."""
        ...

    @property
    def image_encoder_parts(self) -> tuple[Part, ...]:
        """The parts whose weights decide what becomes of an image."""
        ...

    def empty_image(self, latents: Sequence[int]) -> dict[str, Tensor]:
        """A conditioning's tensors of one image, without its values, for measurements; often none.

        Args:
            latents: ``(T, h, w)`` of the video's latents.

        Returns:
            The tensors by name, on the default device; empty where no video starts from an image.
        """
        ...

    def load_image_encoder(self, device: Device = "cpu") -> ImageEncoder:
        """Loads what encodes an image, in float32.

        Raises:
            UserError: its weights are missing or cannot be trusted, or no video starts from an
                image.
        """
        ...
