"""SD3-Medium and SD3.5-Large: sizes, weights and networks of one teacher family.

A model is a folder in diffusers' layout (``transformer/``, ``vae/``, ``text_encoder/`` to
``text_encoder_3/``, ``tokenizer/`` to ``tokenizer_3/``, ``scheduler/``), or the hub id of one. T5,
the third encoder, may be absent. SD3.5-Large differs in its size and in its norms of queries and
keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.conditioning import POOLED, TEXT, Conditioning
from lightx2v_sgmd.families.experts import Expert, only_expert
from lightx2v_sgmd.families.features import Feature
from lightx2v_sgmd.families.image_model import ImageModel
from lightx2v_sgmd.families.sd3 import published
from lightx2v_sgmd.families.sd3.forward import velocity
from lightx2v_sgmd.families.sd3.text import SD3TextEncoder
from lightx2v_sgmd.families.size_rules import SizeRules
from lightx2v_sgmd.families.sources.hub_configs import known_transformer_config
from lightx2v_sgmd.families.sources.model_folder import model_folder, read_video_facts
from lightx2v_sgmd.families.sources.parts import Part, diffusers_source, without_private
from lightx2v_sgmd.families.stock_pipeline import AuthorsSampler, Pipeline
from lightx2v_sgmd.families.t5 import T5_XXL, one_embedding
from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.files.tensors.tensor_reader import Names
from lightx2v_sgmd.interpolants import FLOW, Interpolant
from lightx2v_sgmd.networks.block_loading import Device, OnPart
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted import sd3 as untrusted
from lightx2v_sgmd.untrusted.building import build_t5
from lightx2v_sgmd.untrusted.configs import check_t5
from lightx2v_sgmd.untrusted.tokenizer import load_tokenizer

# B batch, C channels, T = 1 frame, h, w latent height and width, S text tokens, D text width,
# P width of the pooled vector

NETWORK: Final = "SD3Transformer2DModel"
_ENCODERS: Final[tuple[Part, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
_TOKENIZERS: Final = ("tokenizer", "tokenizer_2", "tokenizer_3")
_CHECKS: Final = {
    "transformer": untrusted.check_transformer,
    "vae": untrusted.check_vae,
    "text_encoder": untrusted.check_clip,
    "text_encoder_2": untrusted.check_clip,
    "text_encoder_3": check_t5,
    "scheduler": untrusted.check_scheduler,
}


@dataclass(frozen=True)
class SD3Model(ImageModel):
    """An SD3 model whose configuration was read, and whose weights were not.

    Attributes:
        shift: The flow shift of its scheduler.
        has_t5: True if the model has its third text encoder.
    """

    shift: float = published.SHIFT
    has_t5: bool = True

    @property
    def family(self) -> str:
        """The family's name, for messages."""
        return "SD3"

    @property
    def features(self) -> frozenset[Feature]:
        """LoRAs are read; its blocks run as diffusers has them."""
        return frozenset({"loras"})

    @property
    def experts(self) -> tuple[Expert, ...]:
        """The one network of the model."""
        return only_expert(self)

    @property
    def pipeline(self) -> Pipeline:
        """The stock pipeline that runs its students."""
        return Pipeline(
            "StableDiffusion3Pipeline",
            NETWORK,
            "AutoencoderKL",
            "CLIPTextModelWithProjection",
            "CLIPTokenizer",
            ("vae", *self._encoders, *self._tokenizers),
        )

    def scheduler_config(self, schedule: Schedule) -> dict[str, Any]:
        """The stock flow-matching scheduler; see ``Schedule.diffusers_config``."""
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", **schedule.diffusers_config()}

    @property
    def interpolant(self) -> Interpolant:
        """The path from data to noise, and what the network predicts on it: flow matching."""
        return FLOW

    @property
    def student_shifts(self) -> tuple[float, ...]:
        """3, that of the published schedulers; a student's own scheduler states another number."""
        return (published.SHIFT,)

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        """The linear layers of a block, those of its text included."""
        image = ("to_q", "to_k", "to_v", "to_out.0")
        text = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        attention = (f"attn.{name}" for name in (*image, *text))
        parts = ("ff", "ff_context")
        feed_forward = (f"{part}.{name}" for part in parts for name in ("net.0.proj", "net.2"))
        return (*attention, *feed_forward)

    @property
    def authors_sampler(self) -> AuthorsSampler:
        """Euler's steps with the shift of the model's scheduler."""
        return AuthorsSampler("euler", self.shift)

    @property
    def num_blocks(self) -> int:
        """Number of transformer blocks."""
        return int(self.transformer_config.get("num_layers", 18))

    @property
    def head_dim(self) -> int:
        """Number of channels of a head."""
        return int(self.transformer_config.get("attention_head_dim", 64))

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""
        return int(self.transformer_config.get("num_attention_heads", 18))

    @property
    def text_dim(self) -> int:
        """Width of a text row."""
        return int(self.transformer_config.get("joint_attention_dim", 4096))

    @property
    def pooled_dim(self) -> int:
        """Width P of the pooled vectors."""
        return int(self.transformer_config.get("pooled_projection_dim", 2048))

    @property
    def text_length(self) -> int:
        """Number of tokens of a prompt that are read: T5's, or CLIP's without it."""
        return published.T5_TOKENS if self.has_t5 else published.CLIP_TOKENS

    @property
    def embedding_shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """The shapes of a prompt's embedding: CLIP's rows and T5's, and the pooled vectors."""
        rows = published.CLIP_TOKENS + published.T5_TOKENS
        return {TEXT: (rows, self.text_dim), POOLED: (self.pooled_dim,)}

    @property
    def size_rules(self) -> SizeRules:
        """The rules that the size of an image must meet."""
        patch = int(self.transformer_config.get("patch_size", 2))
        levels = len(self.vae_config.get("block_out_channels", range(4)))
        return SizeRules(
            temporal=1,
            spatial=2 ** (levels - 1),
            patch=(1, patch, patch),
            channels=int(self.transformer_config.get("in_channels", 16)),
            most_positions=int(self.transformer_config.get("pos_embed_max_size", 96)),
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
        """Computes a network's velocity; see ``forward.velocity``."""
        return velocity(network, x_t, time, conditioning[TEXT], conditioning[POOLED], dtype)

    def video_tokens(self, output: Any) -> Tensor:
        """The image's tokens ``[B, N, D]`` in what a block returned: the second of its outputs."""
        tokens: Tensor = output[1]
        return tokens

    def build_transformer(self) -> Any:
        """Builds the network with random weights (none on the meta device)."""
        return untrusted.build_transformer(self.transformer_config)

    def build_vae(self) -> Any:
        """Builds the VAE with random weights (none on the meta device)."""
        return untrusted.build_vae(self.vae_config)

    def build_text_encoder(self) -> Any:
        """Builds the encoders with random weights (none on the meta device)."""
        configs = self.expected_text_encoder_config()
        return torch.nn.ModuleDict({part: _build(part, configs[part]) for part in configs})

    def load_text_encoder(
        self,
        dtype: torch.dtype,
        device: Device = "cpu",
        on_part: OnPart | None = None,
        stream: bool = False,
    ) -> SD3TextEncoder:
        """Loads the tokenizers and the encoders, frozen; raises as ``load_transformer``."""
        configs = self.full_text_encoder_config()
        tokenizers = [load_tokenizer(self.source.tokenizer(name)) for name in self._tokenizers]
        networks = []
        for part in self._encoders:
            build = partial(_build, part, configs[part])
            if part == _ENCODERS[2]:
                networks.append(self._load_t5(build, part, dtype, device, on_part, stream))
                continue
            networks.append(self._load_clip(part, build, dtype, device, on_part))
        lengths = (published.CLIP_TOKENS, published.T5_TOKENS)
        return SD3TextEncoder(tokenizers, networks, self.text_dim, lengths)

    def load_tokenizer(self) -> Any:
        """Loads the tokenizer that reads most of a prompt; raises as ``load_transformer``."""
        return load_tokenizer(self.source.tokenizer(self._tokenizers[-1]))

    def full_text_encoder_config(self) -> dict[str, Any]:
        """The configurations of the encoders, by part.

        Raises:
            UserError: a file is missing or damaged, or the model has encoders of another kind.
        """
        found: dict[str, Any] = {part: self.source.config(part) or {} for part in self._encoders}
        for part, config in found.items():
            kind = "t5" if part == _ENCODERS[2] else "clip_text_model"
            if config.get("model_type") != kind:
                raise UserError(
                    f"teacher.path: {part} of {self.path} is a {config.get('model_type')}, not "
                    f"the {kind} that SD3 uses; copy the model's own"
                )
        return found

    def expected_text_encoder_config(self) -> Mapping[str, Any]:
        """The same without a download: those of the published models without files here."""
        if (Path(self.source.root) / "text_encoder" / "config.json").is_file():
            return self.full_text_encoder_config()
        configs = (published.CLIP_L, published.CLIP_G, T5_XXL)
        return dict(zip(self._encoders, configs, strict=False))

    def _names(self, part: Part) -> Names | None:
        return one_embedding if part == _ENCODERS[2] else super()._names(part)

    @property
    def _encoders(self) -> tuple[Part, ...]:
        return _ENCODERS if self.has_t5 else _ENCODERS[:2]

    @property
    def _tokenizers(self) -> tuple[str, ...]:
        return _TOKENIZERS if self.has_t5 else _TOKENIZERS[:2]


def _build(part: str, config: Mapping[str, Any]) -> Any:
    build = build_t5 if part == _ENCODERS[2] else untrusted.build_clip
    return build(config)


def open_sd3(path: str | Path) -> SD3Model:
    """Reads a model's configuration without loading weights.

    Args:
        path: A folder in diffusers' layout, or a hub id
            (``stabilityai/stable-diffusion-3-medium-diffusers``).

    Raises:
        UserError: the path is not an SD3 model, or cannot be trusted.
    """
    try:
        source = diffusers_source(str(model_folder(path)), _CHECKS)
        root = Path(source.root)
        video, negative = read_video_facts(root)
        if known_transformer_config(source.root) is not None and not root.is_dir():
            config = known_transformer_config(source.root) or {}
            vae, shift = dict(published.VAE_CONFIG), published.SHIFT
            video = VideoFacts(published.SIDE, published.SIDE, 1, 1.0)
        else:  # nothing is downloaded to look at a job of a published model
            config = without_private(source.config("transformer") or {})
            vae = without_private(source.config("vae") or {})
            shift = float(source.scheduler().get("shift", 1.0))
        if config.get("in_channels", 16) != vae.get("latent_channels", 4):
            raise UserError(
                f"{path}: the transformer takes {config.get('in_channels', 16)} channels and the "
                f"VAE gives {vae.get('latent_channels', 4)}; copy the model again"
            )
    except UserError as error:
        raise UserError(f"teacher.path: {error}") from error
    has_t5 = not root.is_dir() or (root / _ENCODERS[2]).is_dir()
    return SD3Model(
        str(path), config, vae, source, video, negative or "", shift=shift, has_t5=has_t5
    )
