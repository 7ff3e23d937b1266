"""The protocol of a teacher family: everything that differs from one to another is behind it.

Code outside this folder holds a ``Model`` and does not ask which family it is of. A family is a
folder here with one class of that protocol, named in ``opening``. What knows the layers of Wan's
networks and VAE beside it makes them fast or small: ``networks``, ``infer/network``, ``infer/vae``
and the export formats (docs/decisions/034-the-seam.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightx2v_sgmd.families.conditioning import Conditioning, Embedding
from lightx2v_sgmd.families.encoders import ImageToVideo, PromptEncoder
from lightx2v_sgmd.families.experts import Expert
from lightx2v_sgmd.families.features import Feature
from lightx2v_sgmd.families.size_rules import SizeRules
from lightx2v_sgmd.families.sources.parts import Source
from lightx2v_sgmd.families.stock_pipeline import AuthorsSampler, Pipeline
from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.files.tensors.safetensors_files import Header
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.files.weighted_lora import WeightedLora
from lightx2v_sgmd.interpolants import Interpolant
from lightx2v_sgmd.networks.block_loading import Device, OnPart
from lightx2v_sgmd.schedule import Schedule

# B batch, C channels, T latent frames, h, w latent height and width, F video frames, H, W,
# S text tokens, D text width


class Model(ImageToVideo, Protocol):
    """A model whose configuration was read, and whose weights were not.

    Networks are modules of diffusers and transformers. Methods that load or build one leave it in
    evaluation mode. What it knows of images that videos start from is in ``ImageToVideo``.
    """

    # Facts

    @property
    def family(self) -> str:
        """The family's name, for messages: ``Wan2.1``."""
        ...

    @property
    def features(self) -> frozenset[Feature]:
        """The optional abilities of the family's networks."""
        ...

    @property
    def formats(self) -> tuple[str, ...]:
        """The export formats that its students can be written in."""
        ...

    @property
    def pipeline(self) -> Pipeline:
        """The stock pipeline that runs its students."""
        ...

    @property
    def path(self) -> str:
        """The path as given: a folder, a hub id or a file of weights."""
        ...

    @property
    def source(self) -> Source:
        """The location of its parts."""
        ...

    @property
    def transformer_config(self) -> dict[str, Any]:
        """The arguments of the network's class."""
        ...

    @property
    def vae_config(self) -> dict[str, Any]:
        """The arguments of the VAE's class."""
        ...

    @property
    def video(self) -> VideoFacts | None:
        """The size, length and frame rate that it was made for; None if nothing says so."""
        ...

    @property
    def loras(self) -> tuple[WeightedLora, ...]:
        """LoRA files that are merged into the network when its weights are read."""
        ...

    @property
    def usual_frames(self) -> int:
        """The number of frames that its videos usually have; an image is one frame."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second of its videos."""
        ...

    @property
    def negative_prompt(self) -> str:
        """The prompt that its authors guide away from."""
        ...

    def negative_prompt_for(self, asked: str | None) -> str:
        """The negative prompt that a job asks for; None asks for the authors' own."""
        ...

    @property
    def authors_sampler(self) -> AuthorsSampler:
        """The sampler of its authors.

        Raises:
            UserError: the file that names it is damaged.
        """
        ...

    # Diffusion

    @property
    def interpolant(self) -> Interpolant:
        """The path from data to noise, and what the network predicts on it."""
        ...

    @property
    def experts(self) -> tuple[Expert, ...]:
        """The networks by time, the one next to noise first; most models have one.

        Whatever this protocol says of "the network" is about the first of them.
        """
        ...

    @property
    def student_shifts(self) -> tuple[float, ...]:
        """The flow shifts that its students' steps may have, the usual one first; 1 is no shift."""
        ...

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        """The ends of the names of the linear layers that get adapters by default."""
        ...

    def scheduler_config(self, schedule: Schedule) -> dict[str, Any]:
        """The class and arguments of the stock scheduler that takes a student's steps.

        Raises:
            UserError: no stock scheduler takes these steps.
        """
        ...

    def draw_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draws the noise of one video as the stock pipeline does: ``[1, C, T, h, w]`` float32."""
        ...

    # Sizes

    @property
    def num_blocks(self) -> int:
        """Number of the network's repeated blocks."""
        ...

    @property
    def blocks_are_alike(self) -> bool:
        """True if all blocks have one size, so that a few of them tell what all of them need."""
        ...

    @property
    def num_heads(self) -> int:
        """Number of attention heads; a sequence degree must divide it."""
        ...

    @property
    def head_dim(self) -> int:
        """Number of channels of a head."""
        ...

    @property
    def width(self) -> int:
        """Number of channels of a token in the network."""
        ...

    @property
    def text_dim(self) -> int:
        """Width D of a text row."""
        ...

    @property
    def text_length(self) -> int:
        """Number of text rows that the network attends to, padding included."""
        ...

    @property
    def embedding_shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """The shapes of a prompt's embedding by name; None stands for any length."""
        ...

    @property
    def size_rules(self) -> SizeRules:
        """The rules that the size of a video must meet."""
        ...

    def latent_shape(self, height: int, width: int, num_frames: int) -> tuple[int, int, int, int]:
        """``(C, T, h, w)`` of a video's latents.

        Raises:
            UserError: the model cannot make a video of that size.
        """
        ...

    def token_count(self, height: int, width: int, num_frames: int) -> int:
        """Number of tokens of one video; raises as ``latent_shape``."""
        ...

    # Conditioning

    def text_dtype(self, teacher_dtype: torch.dtype | str) -> torch.dtype:
        """The precision of the text encoder for a teacher's precision."""
        ...

    def conditioning(self, embeddings: Sequence[Embedding]) -> Conditioning:
        """Batches what the text encoder made of each prompt."""
        ...

    def empty_conditioning(self, batch: int, text_rows: int) -> Conditioning:
        """Makes a conditioning without values, for measurements.

        Args:
            batch: Number of samples.
            text_rows: Text rows that the network attends to, padding included.
        """
        ...

    # The network

    def predict(
        self,
        network: Any,
        x_t: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Runs a network.

        Args:
            network: A network of this model, or an engine around one.
            x_t: ``[B, C, T, h, w]``; cast to the network's precision.
            time: ``[B]`` float32, 0 for data and 1 for noise.
            conditioning: The batch's conditioning.
            dtype: The network's precision, if autocast makes it differ from its weights'.

        Returns:
            ``[B, C, T, h, w]`` in that precision, of the interpolant's kind.
        """
        ...

    def fold_text_padding(self, network: Any) -> None:
        """Makes a network attend once to all padding rows of the text, if it has any.

        It is for small models on a CPU; the longest text must have fewer rows than the network is
        wide.
        """
        ...

    def with_loras(self, loras: Sequence[WeightedLora]) -> Model:
        """The same model with LoRA files merged into its network; reads no weights.

        Raises:
            UserError: a file is missing, damaged, or no LoRA for this network.
        """
        ...

    def with_blocks(self, count: int) -> Model:
        """The same model with another number of blocks, for measurements."""
        ...

    def with_transformer_config(self, config: dict[str, Any]) -> Model:
        """The same model with other arguments of the network's class."""
        ...

    def build_transformer(self) -> Any:
        """Builds the network with random weights (none on the meta device)."""
        ...

    def video_tokens(self, output: Any) -> Tensor:
        """The video in what a block, or a layer of ``head_layers``, returned.

        Returns:
            Tokens ``[B, N, D]``, or the map ``[B, D, h, w]`` of a layer of a U-Net.
        """
        ...

    @property
    def head_widths(self) -> tuple[int, ...]:
        """The widths D of the layers of ``head_layers``."""
        ...

    def head_layers(self, network: Any) -> Sequence[nn.Module]:
        """The layers of a network that a discriminator's heads may read, in the order they run."""
        ...

    def transformer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the network's weights under diffusers' names; reads no weights."""
        ...

    def transformer_weights(self) -> WholeTensors:
        """The network's weights under diffusers' names; reads tensors or slices on request.

        Raises:
            UserError: the weights are missing or cannot be trusted.
        """
        ...

    def refuse_variant(
        self, header: Header, expected: Mapping[str, tuple[int, ...]], what: str
    ) -> None:
        """Refuses weights with layers of a variant that is not supported.

        Args:
            header: The weights under diffusers' names.
            expected: The shapes of the network's weights.
            what: The weights, for the message.

        Raises:
            UserError: they have such layers; the message names the variant.
        """
        ...

    def load_transformer(
        self,
        dtype: torch.dtype = torch.float32,
        device: Device = "cpu",
        on_part: OnPart | None = None,
    ) -> Any:
        """Loads the network; weights that diffusers keeps in float32 stay float32.

        Args:
            dtype: The precision of the weights.
            device: Device of the weights.
            on_part: Called with each part of the network whose weights are there: the network
                itself when it has all but its blocks' weights, then each block.

        Raises:
            UserError: weights are missing, unexpected, of the wrong shape, or cannot be trusted.
        """
        ...

    # The text encoder

    def text_encoder_weights(self) -> WholeTensors:
        """The text encoder's weights; see ``transformer_weights``."""
        ...

    def load_text_encoder(
        self,
        dtype: torch.dtype,
        device: Device = "cpu",
        on_part: OnPart | None = None,
        stream: bool = False,
    ) -> PromptEncoder:
        """Loads the tokenizer and the encoder, frozen; as ``load_transformer``.

        Args:
            dtype: The precision of the encoder.
            device: Device of the encoder.
            on_part: As for ``load_transformer``.
            stream: True leaves the blocks of T5 in their file until they compute, on the CPU; the
                embeddings are the same.
        """
        ...

    def text_encoder_files(self) -> list[Path]:
        """The files that decide an embedding: weights of the encoders, and their tokenizers."""
        ...

    def load_tokenizer(self) -> Any:
        """Loads the tokenizer alone; raises as ``load_transformer``."""
        ...

    def build_text_encoder(self) -> Any:
        """Builds the encoder with random weights (none on the meta device); downloads nothing."""
        ...

    def full_text_encoder_config(self) -> dict[str, Any]:
        """The arguments of the encoder's configuration.

        Raises:
            UserError: the model has a text encoder of another kind.
        """
        ...

    def expected_text_encoder_config(self) -> Mapping[str, Any]:
        """The same without a download: that of the family's published models."""
        ...

    # The VAE

    def build_vae(self) -> Any:
        """Builds the VAE with random weights (none on the meta device)."""
        ...

    def vae_weights(self) -> WholeTensors:
        """The VAE's weights; see ``transformer_weights``."""
        ...

    def load_vae(self, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> Any:
        """Loads the VAE, frozen; raises as ``load_transformer``."""
        ...

    def normalized_latents(self, vae: Any, encoded: Tensor) -> Tensor:
        """Normalises what the VAE encoded, ``[B, C, T, h, w]``, for the network."""
        ...

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Decodes normalised latents ``[B, C, T, h, w]`` to video ``[B, F, H, W, 3]`` uint8."""
        ...

    def decode_frames(self, vae: Any, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Decodes some frames of normalised latents; gradient flows to the latents.

        Args:
            vae: The VAE, frozen.
            latents: ``[B, C, T, h, w]``.
            frames: Indices of the frames.

        Returns:
            ``[B, len(frames), 3, H, W]`` in [-1, 1].
        """
        ...
