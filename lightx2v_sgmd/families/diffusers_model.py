"""The common part of models in diffusers' layout; each family's class adds what differs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightx2v_sgmd.families.encoders import ImageEncoder
from lightx2v_sgmd.families.features import Feature, TakesImage
from lightx2v_sgmd.families.loading import (
    empty_weights,
    fill,
    load_t5,
    shapes_of,
    stays_float32,
)
from lightx2v_sgmd.families.lora.reading import open_lora
from lightx2v_sgmd.families.lora.updates import LoraUpdates, MergedWholeTensors
from lightx2v_sgmd.families.size_rules import SizeRules
from lightx2v_sgmd.families.sources.parts import Part, Source
from lightx2v_sgmd.families.t5 import EMBEDDING_ALIASES
from lightx2v_sgmd.families.text_rows import text_dtype
from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.files.tensors.safetensors_files import Header
from lightx2v_sgmd.files.tensors.tensor_reader import Names, WholeTensors
from lightx2v_sgmd.files.weighted_lora import WeightedLora
from lightx2v_sgmd.networks.block_loading import Device, OnPart, repeated_blocks
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.tokenizer import load_tokenizer

# C channels, T latent frames, h, w latent height and width


@dataclass(frozen=True)
class DiffusersModel(ABC):
    """A model whose configuration was read, and whose weights were not; see ``base.Model``.

    As it stands here a model runs as diffusers has it, from text alone, and takes no LoRA files; a
    family that has the feature ``loras`` takes those under diffusers' or PEFT's names.

    Attributes:
        path: The path as it was given.
        transformer_config: Arguments of the network's class.
        vae_config: Arguments of the VAE's class.
        source: Location of its parts.
        video: The size, length and frame rate that it was made for; None if nothing says so.
        negative_prompt: The prompt that its authors guide away from.
        loras: LoRA files that are merged into the network when its weights are read.
    """

    path: str
    transformer_config: dict[str, Any]
    vae_config: dict[str, Any]
    source: Source
    video: VideoFacts | None = None
    negative_prompt: str = ""
    loras: tuple[WeightedLora, ...] = ()

    @property
    @abstractmethod
    def family(self) -> str:
        """The family's name, for messages."""

    @property
    @abstractmethod
    def num_blocks(self) -> int:
        """Number of the network's repeated blocks."""

    @property
    @abstractmethod
    def num_heads(self) -> int:
        """Number of attention heads."""

    @property
    @abstractmethod
    def head_dim(self) -> int:
        """Number of channels of a head."""

    @property
    @abstractmethod
    def size_rules(self) -> SizeRules:
        """The rules that the size of a video must meet."""

    @abstractmethod
    def build_transformer(self) -> Any:
        """Builds the network with random weights (none on the meta device)."""

    @abstractmethod
    def build_vae(self) -> Any:
        """Builds the VAE with random weights (none on the meta device)."""

    def _names(self, part: Part) -> Names | None:
        """The rules that make diffusers' names of those in a part's files; None leaves them."""
        return None

    def _weights(self, part: Part) -> WholeTensors:
        """A part's weights under diffusers' names."""
        files, names = self.source.files(part), self._names(part)
        if part == "transformer" and self.loras:
            updates = LoraUpdates(self.loras, self.transformer_shapes())
            return MergedWholeTensors(files, names, updates)
        return WholeTensors(files, names)

    @property
    def features(self) -> frozenset[Feature]:
        """None: its blocks run as diffusers has them."""
        return frozenset()

    @property
    def formats(self) -> tuple[str, ...]:
        """The export formats that its students can be written in."""
        return ("diffusers", "lora")

    def negative_prompt_for(self, asked: str | None) -> str:
        """The negative prompt that a job asks for; None asks for the authors' own."""
        return self.negative_prompt if asked is None else asked

    def draw_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draws the noise ``[1, C, T, h, w]`` of one video, in this order."""
        return torch.randn(1, *shape, generator=generator)

    @property
    def width(self) -> int:
        """Number of channels of a token in the network."""
        return self.num_heads * self.head_dim

    @property
    def blocks_are_alike(self) -> bool:
        """True: a transformer repeats one block."""
        return True

    @property
    def head_widths(self) -> tuple[int, ...]:
        """The width of each block."""
        return (self.width,) * self.num_blocks

    def head_layers(self, network: Any) -> Sequence[nn.Module]:
        """The network's blocks."""
        return list(repeated_blocks(network))

    def latent_shape(self, height: int, width: int, num_frames: int) -> tuple[int, int, int, int]:
        """``(C, T, h, w)`` of a video's latents.

        Raises:
            UserError: the model cannot make a video of that size.
        """
        return self.size_rules.latent_shape(height, width, num_frames)

    def token_count(self, height: int, width: int, num_frames: int) -> int:
        """Number of tokens (patches) of one video; raises as ``latent_shape``."""
        latents = self.latent_shape(height, width, num_frames)[1:]
        return prod(n // p for n, p in zip(latents, self.size_rules.patch, strict=True))

    def text_dtype(self, teacher_dtype: torch.dtype | str) -> torch.dtype:
        """The precision of the text encoders; see ``text_rows.text_dtype``."""
        return text_dtype(teacher_dtype)

    def fold_text_padding(self, network: Any) -> None:
        """Changes nothing: the rows of padding tokens differ, and each is attended to."""
        return

    def with_loras(self, loras: Sequence[WeightedLora]) -> Self:
        """The same model with LoRA files merged into its network; reads no weights.

        Raises:
            UserError: a file is missing, damaged, or no LoRA for this network, or the family takes
                none.
        """
        if not loras:
            return self
        if "loras" not in self.features:
            raise UserError(
                f"lora: {loras[0].path}: LoRA files are not supported for {self.family}; give "
                "weights with it merged"
            )
        shapes = self.transformer_shapes()
        for lora in loras:
            open_lora(lora.path, shapes)
        return replace(self, loras=(*self.loras, *loras))

    def with_transformer_config(self, config: dict[str, Any]) -> Self:
        """The same model with other arguments of the network's class."""
        return replace(self, transformer_config=config)

    def with_blocks(self, count: int) -> Self:
        """The same model with another number of blocks."""
        return self.with_transformer_config(self.transformer_config | {"num_layers": count})

    def refuse_variant(
        self, header: Header, expected: Mapping[str, tuple[int, ...]], what: str
    ) -> None:
        """Refuses nothing: variants show in their configurations."""
        return

    @property
    def takes_image(self) -> TakesImage:
        """Never: it starts from text alone."""
        return "never"

    @property
    def image_encoder_parts(self) -> tuple[Part, ...]:
        """None: nothing starts from an image."""
        return ()

    def empty_image(self, latents: Sequence[int]) -> dict[str, Tensor]:
        """Nothing: nothing starts from an image."""
        return {}

    def load_image_encoder(self, device: Device = "cpu") -> ImageEncoder:
        """Refuses an image to start from.

        Raises:
            UserError: always.
        """
        made = "images" if self.size_rules.images else "videos"
        remedy = "" if self.size_rules.images else ", or use an image-to-video model"
        raise UserError(f"{self.path} makes {made} from text alone; leave out the image{remedy}")

    def transformer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the network's weights under diffusers' names; reads no weights."""
        return shapes_of(self.build_transformer)

    def transformer_weights(self) -> WholeTensors:
        """The network's weights under diffusers' names; reads tensors or slices on request.

        Raises:
            UserError: the weights are missing or cannot be trusted.
        """
        return self._weights("transformer")

    def vae_weights(self) -> WholeTensors:
        """The VAE's weights; see ``transformer_weights``."""
        return self._weights("vae")

    def text_encoder_weights(self) -> WholeTensors:
        """The first text encoder's weights; see ``transformer_weights``."""
        return self._weights("text_encoder")

    def load_transformer(
        self,
        dtype: torch.dtype = torch.float32,
        device: Device = "cpu",
        on_part: OnPart | None = None,
    ) -> Any:
        """Loads the network; weights that diffusers keeps in float32 stay float32.

        Weights go from their files straight to the device, block by block.

        Args:
            dtype: The precision of the weights.
            device: Device of the weights.
            on_part: Called with each part of the network whose weights are there: the network
                itself when it has all but its blocks' weights, then each block.

        Raises:
            UserError: weights are missing, unexpected, of the wrong shape, or cannot be trusted.
        """
        with empty_weights():
            network = self.build_transformer()
        in_float32 = stays_float32(network)
        return self._fill(network, "transformer", dtype, in_float32, device, on_part)

    def load_vae(self, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> Any:
        """Loads the VAE, frozen; raises as ``load_transformer``."""
        with empty_weights():
            network = self.build_vae()
        in_float32 = stays_float32(network)
        return self._fill(network, "vae", dtype, in_float32, device).requires_grad_(False)

    def text_encoder_files(self) -> list[Path]:
        """The files that decide an embedding: the encoder's weights and its tokenizer."""
        return [*self.source.files("text_encoder"), *self.source.tokenizer_files()]

    def load_tokenizer(self) -> Any:
        """Loads the tokenizer alone; raises as ``load_transformer``."""
        return load_tokenizer(self.source.tokenizer())

    def _load_t5(
        self,
        build: Callable[[], Any],
        part: Part,
        dtype: torch.dtype,
        device: Device,
        on_part: OnPart | None,
        stream: bool,
    ) -> Any:
        """Loads a T5 or umT5 encoder; see ``loading.load_t5``."""
        weights = self._weights(part)
        return load_t5(build, weights, self._what(part), dtype, device, on_part, stream)

    def _what(self, part: Part) -> str:
        """A part's weights, for messages."""
        return f"teacher.path: {self.source.folder_name(part)} of {self.path}"

    def _fill(
        self,
        network: Any,
        part: Part,
        dtype: torch.dtype,
        in_float32: Callable[[str], bool],
        device: Device,
        on_part: OnPart | None = None,
    ) -> Any:
        """Fills an empty network; weights with ``in_float32(name)`` are float32."""
        return fill(
            network,
            self._weights(part),
            self._what(part),
            dtype,
            in_float32,
            device,
            on_part,
            aliases=EMBEDDING_ALIASES,
            refuse=self.refuse_variant if part == "transformer" else None,
        )
