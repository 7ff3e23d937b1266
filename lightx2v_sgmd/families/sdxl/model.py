"""SDXL: sizes, weights and networks of one teacher family.

A model is a folder in diffusers' layout (``unet/``, ``vae/``, ``text_encoder/``,
``text_encoder_2/``, ``tokenizer/``, ``tokenizer_2/``, ``scheduler/``), or the hub id of one. Its
network is a U-Net, whose blocks differ in width and in number of positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor, nn

from lightx2v_sgmd.families.conditioning import POOLED, TEXT, Conditioning
from lightx2v_sgmd.families.ddim import check_trailing_steps
from lightx2v_sgmd.families.experts import Expert, only_expert
from lightx2v_sgmd.families.features import Feature
from lightx2v_sgmd.families.image_model import ImageModel
from lightx2v_sgmd.families.sdxl import published
from lightx2v_sgmd.families.sdxl.forward import predict_noise
from lightx2v_sgmd.families.sdxl.text import SDXLTextEncoder
from lightx2v_sgmd.families.size_rules import SizeRules
from lightx2v_sgmd.families.sources.parts import UNET, Part
from lightx2v_sgmd.families.stock_pipeline import AuthorsSampler, Pipeline
from lightx2v_sgmd.interpolants import Interpolant, VariancePreserving, scaled_linear_alphas
from lightx2v_sgmd.networks.block_loading import Device, OnPart
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted import sdxl as untrusted
from lightx2v_sgmd.untrusted.sd3 import build_clip, build_vae
from lightx2v_sgmd.untrusted.tokenizer import load_tokenizer

# B batch, C channels, T = 1 frame, h, w latent height and width, S text tokens, D text width,
# P width of the pooled vector

NETWORK: Final = "UNet2DConditionModel"
_ENCODERS: Final[tuple[Part, ...]] = ("text_encoder", "text_encoder_2")
_TOKENIZERS: Final = ("tokenizer", "tokenizer_2")
EMPTY_IS_ZERO: Final = "force_zeros_for_empty_prompt"
"""The key of ``model_index.json`` that says so."""
_MOST_POSITIONS: Final = 256
"""Most positions of the coarsest level in each direction: 8,192 pixels of the published model."""


@dataclass(frozen=True)
class SDXLModel(ImageModel):
    """An SDXL model whose configuration was read, and whose weights were not.

    Attributes:
        scheduler: Arguments of the scheduler: the noise schedule of the model's training.
        empty_is_zero: True if an empty prompt is told to the network as zeros.
    """

    scheduler: dict[str, Any] = field(default_factory=dict)
    empty_is_zero: bool = True

    @property
    def family(self) -> str:
        """The family's name, for messages."""
        return "SDXL"

    @property
    def experts(self) -> tuple[Expert, ...]:
        """The one network of the model."""
        return only_expert(self)

    @property
    def pipeline(self) -> Pipeline:
        """The stock pipeline that runs its students."""
        return Pipeline(
            "StableDiffusionXLPipeline",
            NETWORK,
            "AutoencoderKL",
            "CLIPTextModel",
            "CLIPTokenizer",
            ("vae", *_ENCODERS, *_TOKENIZERS),
            UNET,
            "stable-diffusion-xl-v1-base",
            "https://github.com/huggingface/diffusers",
        )

    @property
    def features(self) -> frozenset[Feature]:
        """The engine's options that its network takes: LoRA files."""
        return frozenset({"loras"})

    @cached_property
    def interpolant(self) -> Interpolant:
        """The discrete diffusion of the scheduler's file; the network predicts noise."""
        start, end = (self._noise_schedule[key] for key in ("beta_start", "beta_end"))
        return VariancePreserving(scaled_linear_alphas(float(start), float(end)), "epsilon")

    @property
    def student_shifts(self) -> tuple[float, ...]:
        """1: discrete diffusions shift nothing."""
        return (1.0,)

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        """The linear layers of a transformer block: both attentions and the feed-forward."""
        names = ("to_q", "to_k", "to_v", "to_out.0")
        attentions = (f"{attention}.{name}" for attention in ("attn1", "attn2") for name in names)
        return (*attentions, "ff.net.0.proj", "ff.net.2")

    def scheduler_config(self, schedule: Schedule) -> dict[str, Any]:
        """The stock DDIM scheduler, on the model's noise schedule, with ``trailing`` steps.

        Raises:
            UserError: the stock scheduler does not take these steps.
        """
        check_trailing_steps(schedule, self.family)
        return {
            **self._noise_schedule,
            "_class_name": "DDIMScheduler",
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "steps_offset": 0,
            "set_alpha_to_one": True,
        }

    @property
    def authors_sampler(self) -> AuthorsSampler:
        """DDIM, on the same path as the Euler steps of the authors' scheduler."""
        return AuthorsSampler("ddim", 1.0)

    @property
    def num_blocks(self) -> int:
        """Number of transformer blocks, at all levels."""
        config = self.transformer_config
        layers = int(config["layers_per_block"])
        depths = [int(depth) for depth in config["transformer_layers_per_block"]]
        down = [depth for depth, name in zip(depths, self._down, strict=True) if _attends(name)]
        up = [depth for depth, name in zip(depths[::-1], self._up, strict=True) if _attends(name)]
        return layers * sum(down) + depths[-1] + (layers + 1) * sum(up)

    @property
    def blocks_are_alike(self) -> bool:
        """False: a U-Net is measured whole."""
        return False

    @property
    def head_dim(self) -> int:
        """Number of channels of a head, at the coarsest level."""
        return int(self.transformer_config["block_out_channels"][-1]) // self.num_heads

    @property
    def num_heads(self) -> int:
        """Number of attention heads at the coarsest level, as the key's name does not say."""
        return int(self.transformer_config["attention_head_dim"][-1])

    @property
    def text_dim(self) -> int:
        """Width of a text row."""
        return int(self.transformer_config["cross_attention_dim"])

    @property
    def pooled_dim(self) -> int:
        """Width P of the pooled vectors: what six numbers of the image's size leave."""
        config = self.transformer_config
        times = 6 * int(config["addition_time_embed_dim"])
        return int(config["projection_class_embeddings_input_dim"]) - times

    @property
    def text_length(self) -> int:
        """Number of text rows that the network attends to, padding included."""
        return published.TOKENS

    @property
    def embedding_shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """The shapes of a prompt's embedding: the rows, and the pooled vector."""
        return {TEXT: (published.TOKENS, self.text_dim), POOLED: (self.pooled_dim,)}

    @property
    def size_rules(self) -> SizeRules:
        """The rules for an image's size; a token is a position of the coarsest level."""
        levels = len(self.vae_config.get("block_out_channels", range(4)))
        patch = 2 ** (len(self._down) - 1)
        return SizeRules(
            temporal=1,
            spatial=2 ** (levels - 1),
            patch=(1, patch, patch),
            channels=int(self.transformer_config["in_channels"]),
            most_positions=_MOST_POSITIONS,
            images=True,
        )

    def predict(
        self,
        network: Any,
        x_t: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Computes the noise at the timestep nearest to the time; see ``forward.predict_noise``."""
        timestep = self.interpolant.timestep(time)
        text, pooled = conditioning[TEXT], conditioning[POOLED]
        pixels = self.size_rules.spatial
        return predict_noise(network, x_t, timestep, text, pooled, pixels, dtype)

    def video_tokens(self, output: Any) -> Tensor:
        """The output of a transformer block, ``[B, N, D]``, or of a ResNet, ``[B, D, h, w]``."""
        assert isinstance(output, Tensor), "a layer of a U-Net returns one tensor"
        return output

    @property
    def head_widths(self) -> tuple[int, ...]:
        """Channels of the layers of ``head_layers``."""
        channels = [int(width) for width in self.transformer_config["block_out_channels"]]
        return (*channels, channels[-1], *channels[::-1])

    def head_layers(self, network: Any) -> Sequence[nn.Module]:
        """The last ResNet of each block: down, middle and up (arXiv 2507.18569, App. B.1)."""
        blocks = (*network.down_blocks, network.mid_block, *network.up_blocks)
        return [block.resnets[-1] for block in blocks]

    def with_blocks(self, count: int) -> Self:
        """The same model: a U-Net is measured whole."""
        return self

    def build_transformer(self) -> Any:
        """Builds the network with random weights (none on the meta device)."""
        return untrusted.build_unet(self.transformer_config)

    def build_vae(self) -> Any:
        """Builds the VAE with random weights (none on the meta device)."""
        return build_vae(self.vae_config)

    def build_text_encoder(self) -> Any:
        """Builds the encoders with random weights (none on the meta device)."""
        configs = self.expected_text_encoder_config()
        return nn.ModuleDict({part: _build(part, configs[part]) for part in _ENCODERS})

    def load_text_encoder(
        self,
        dtype: torch.dtype,
        device: Device = "cpu",
        on_part: OnPart | None = None,
        stream: bool = False,
    ) -> SDXLTextEncoder:
        """Loads the tokenizers and the encoders, frozen; raises as ``load_transformer``."""
        configs = self.full_text_encoder_config()
        tokenizers = [load_tokenizer(self.source.tokenizer(name)) for name in _TOKENIZERS]
        networks = []
        for part in _ENCODERS:
            build = partial(_build, part, configs[part])
            networks.append(self._load_clip(part, build, dtype, device, on_part))
        return SDXLTextEncoder(tokenizers, networks, published.TOKENS, self.empty_is_zero)

    def full_text_encoder_config(self) -> dict[str, Any]:
        """The configurations of the encoders, by part, and whether an empty prompt is zeros.

        Raises:
            UserError: a file is missing or damaged, or the encoders are not those of the network.
        """
        found: dict[str, Any] = {part: self.source.config(part) or {} for part in _ENCODERS}
        for part, config in found.items():
            kind = config.get("model_type")
            if kind != "clip_text_model":
                raise UserError(
                    f"teacher.path: {part} of {self.path} is a {kind}, not the clip_text_model "
                    "that SDXL uses; copy the model's own"
                )
        width = sum(int(config.get("hidden_size", 512)) for config in found.values())
        pooled = int(found[_ENCODERS[1]].get("projection_dim", 512))
        if (width, pooled) != (self.text_dim, self.pooled_dim):
            raise UserError(
                f"teacher.path: the text encoders of {self.path} give rows of {width} and a vector "
                f"of {pooled} numbers, and its U-Net takes {self.text_dim} and {self.pooled_dim}; "
                "copy the model again"
            )
        return {**found, EMPTY_IS_ZERO: self.empty_is_zero}

    def expected_text_encoder_config(self) -> Mapping[str, Any]:
        """The same without a download: those of the published model without files here."""
        if (Path(self.source.root) / "text_encoder" / "config.json").is_file():
            return self.full_text_encoder_config()
        return dict(zip(_ENCODERS, (published.CLIP_L, published.CLIP_G), strict=True))

    @property
    def _encoders(self) -> tuple[Part, ...]:
        return _ENCODERS

    @property
    def _tokenizers(self) -> tuple[str, ...]:
        return _TOKENIZERS

    @property
    def _noise_schedule(self) -> dict[str, Any]:
        """The noise schedule of the model's training, under diffusers' keys."""
        known = published.SCHEDULER_CONFIG
        return {key: self.scheduler.get(key, value) for key, value in known.items()}

    @property
    def _down(self) -> Sequence[str]:
        names: Sequence[str] = self.transformer_config["down_block_types"]
        return names

    @property
    def _up(self) -> Sequence[str]:
        names: Sequence[str] = self.transformer_config["up_block_types"]
        return names


def _attends(block: str) -> bool:
    """True if a kind of block has transformer blocks."""
    return block.startswith("CrossAttn")


def _build(part: str, config: Mapping[str, Any]) -> Any:
    build = untrusted.build_first_clip if part == _ENCODERS[0] else build_clip
    return build(config)
