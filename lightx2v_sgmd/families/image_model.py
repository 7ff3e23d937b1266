"""Base of the teachers of images: the VAE, and prompts as CLIP's encoders tell them.

Images are videos of one frame outside the families' folders: latents have T = 1 there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightx2v_sgmd.families.conditioning import POOLED, TEXT, Conditioning, Embedding
from lightx2v_sgmd.families.diffusers_model import DiffusersModel
from lightx2v_sgmd.families.loading import empty_weights
from lightx2v_sgmd.families.sources.parts import Part
from lightx2v_sgmd.files.tensors.tensor_reader import Names
from lightx2v_sgmd.networks.block_loading import Device, OnPart

# B batch, C channels, T = 1 frame, h, w latent height and width, H, W, S text tokens, D text width,
# P width of the pooled vector

_POSITIONS: Final = "text_model.embeddings.position_ids"
"""A constant that old files of CLIP have among the weights."""


@dataclass(frozen=True)
class ImageModel(DiffusersModel):
    """A model with an ``AutoencoderKL``, whose prompts are text rows and a pooled vector."""

    @property
    @abstractmethod
    def text_dim(self) -> int:
        """Width of a text row."""

    @property
    @abstractmethod
    def pooled_dim(self) -> int:
        """Width P of the pooled vectors."""

    @property
    @abstractmethod
    def embedding_shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """The shapes of a prompt's embedding: the text rows and the pooled vector."""

    @property
    @abstractmethod
    def _encoders(self) -> tuple[Part, ...]:
        """The model's text encoders."""

    @property
    @abstractmethod
    def _tokenizers(self) -> tuple[str, ...]:
        """The folder of each encoder's tokenizer."""

    @property
    def fps(self) -> float:
        """1: an image is a video of one frame."""
        return 1.0

    @property
    def usual_frames(self) -> int:
        """1: an image is a video of one frame."""
        return 1

    def conditioning(self, embeddings: Sequence[Embedding]) -> Conditioning:
        """The text ``[B, S, D]`` and the pooled vectors ``[B, P]`` of prompts."""
        return Conditioning(
            {name: torch.stack([each[name] for each in embeddings]) for name in (TEXT, POOLED)}
        )

    def empty_conditioning(self, batch: int, text_rows: int) -> Conditioning:
        """A conditioning without values, for measurements; its text has all its rows."""
        rows, _ = self.embedding_shapes[TEXT]
        text = torch.empty(batch, rows or text_rows, self.text_dim)
        return Conditioning({TEXT: text, POOLED: torch.empty(batch, self.pooled_dim)})

    def text_encoder_files(self) -> list[Path]:
        """The files that decide an embedding: weights and tokenizers of all encoders."""
        weights = [file for part in self._encoders for file in self.source.files(part)]
        tokenizers = [f for name in self._tokenizers for f in self.source.tokenizer_files(name)]
        return [*weights, *tokenizers]

    def normalized_latents(self, vae: Any, encoded: Tensor) -> Tensor:
        """Scales what the VAE encoded, ``[B, C, 1, h, w]``, for the network."""
        return (encoded - float(vae.config.shift_factor or 0.0)) * float(vae.config.scaling_factor)

    @torch.no_grad()
    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Decodes scaled latents ``[B, C, 1, h, w]`` to images ``[B, 1, H, W, 3]`` uint8."""
        images = _decode(vae, latents).clamp(-1, 1).float()
        return images.div(2).add(0.5).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)[:, None]

    def decode_frames(self, vae: Any, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Decodes images ``[B, 1, 3, H, W]`` in [-1, 1]; the backward pass runs the decoder again.

        Args:
            vae: The VAE, frozen.
            latents: ``[B, C, 1, h, w]``.
            frames: Indices of the frames: 0 alone.
        """
        assert list(frames) == [0], "an image has one frame"
        if not torch.is_grad_enabled():
            return _decode(vae, latents).clamp(-1, 1)[:, None]
        decoded: Tensor = checkpoint(lambda z: _decode(vae, z), latents, use_reentrant=False)
        return decoded.clamp(-1, 1)[:, None]

    def _load_clip(
        self,
        part: Part,
        build: Callable[[], Any],
        dtype: torch.dtype,
        device: Device,
        on_part: OnPart | None,
    ) -> Any:
        """Loads one of CLIP's encoders, frozen."""
        with empty_weights():
            network = build()
        filled = self._fill(network, part, dtype, lambda name: False, device, on_part)
        return filled.requires_grad_(False)

    def _names(self, part: Part) -> Names | None:
        return _encoder_names if part in self._encoders else None


def _decode(vae: Any, latents: Tensor) -> Tensor:
    """Decodes scaled latents ``[B, C, 1, h, w]`` to ``[B, 3, H, W]``, about in [-1, 1]."""
    dtype = vae.decoder.conv_in.weight.dtype  # vae.dtype looks at every weight
    z = latents.squeeze(2).to(dtype) / float(vae.config.scaling_factor)
    image: Tensor = vae.decode(z + float(vae.config.shift_factor or 0.0), return_dict=False)[0]
    return image


def _encoder_names(stored: Iterable[str]) -> dict[str, str]:
    """Names of an encoder's weights, without CLIP's constant."""
    return {name: name for name in stored if name != _POSITIONS}
