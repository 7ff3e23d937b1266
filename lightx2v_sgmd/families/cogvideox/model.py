"""CogVideoX-2b and -5b: sizes, weights and networks of one teacher family.

A model is a folder in diffusers' layout (``transformer/``, ``vae/``, ``text_encoder/``,
``tokenizer/``, ``scheduler/``), or the hub id of one. The 2b has a table of positions, the 5b
rotary ones; their noise schedules and VAEs differ in a number each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.cogvideox import published
from lightx2v_sgmd.families.cogvideox.forward import decode_frames, decode_latents, predict_v
from lightx2v_sgmd.families.cogvideox.text import PaddedTextEncoder
from lightx2v_sgmd.families.conditioning import TEXT, Conditioning, Embedding
from lightx2v_sgmd.families.ddim import check_trailing_steps
from lightx2v_sgmd.families.diffusers_model import DiffusersModel
from lightx2v_sgmd.families.experts import Expert, only_expert
from lightx2v_sgmd.families.features import Feature
from lightx2v_sgmd.families.size_rules import SizeRules
from lightx2v_sgmd.families.sources.hub_configs import known_transformer_config
from lightx2v_sgmd.families.sources.model_folder import model_folder, read_video_facts
from lightx2v_sgmd.families.sources.parts import Part, diffusers_source, without_private
from lightx2v_sgmd.families.stock_pipeline import AuthorsSampler, Pipeline
from lightx2v_sgmd.families.t5 import T5_XXL, one_embedding
from lightx2v_sgmd.families.text_rows import TextEncoder
from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.files.tensors.tensor_reader import Names
from lightx2v_sgmd.interpolants import Interpolant, VariancePreserving, scaled_linear_alphas
from lightx2v_sgmd.networks.block_loading import Device, OnPart
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted import cogvideox as untrusted
from lightx2v_sgmd.untrusted.building import build_t5
from lightx2v_sgmd.untrusted.configs import check_t5

# C channels, T latent frames, h, w latent height and width

NETWORK: Final = "CogVideoXTransformer3DModel"
_CHECKS: Final = {
    "transformer": untrusted.check_transformer,
    "vae": untrusted.check_vae,
    "text_encoder": check_t5,
    "scheduler": untrusted.check_scheduler,
}


@dataclass(frozen=True)
class CogVideoXModel(DiffusersModel):
    """A CogVideoX model whose configuration was read, and whose weights were not.

    Attributes:
        scheduler: Arguments of the scheduler: the noise schedule of the model's training.
    """

    scheduler: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The family's name, for messages."""
        return "CogVideoX"

    @property
    def features(self) -> frozenset[Feature]:
        """Ranks may share a video, and LoRAs are read; blocks run as diffusers has them."""
        return frozenset({"sequence", "loras"})

    @property
    def experts(self) -> tuple[Expert, ...]:
        """The one network of the model."""
        return only_expert(self)

    @property
    def pipeline(self) -> Pipeline:
        """The stock pipeline that runs its students."""
        return Pipeline(
            "CogVideoXPipeline", NETWORK, "AutoencoderKLCogVideoX", "T5EncoderModel", "T5Tokenizer"
        )

    @cached_property
    def interpolant(self) -> Interpolant:
        """The discrete diffusion that the scheduler's file describes; the network predicts v."""
        settings = self.scheduler
        alphas = scaled_linear_alphas(
            float(settings.get("beta_start", 0.00085)),
            float(settings.get("beta_end", 0.012)),
            snr_shift=float(settings.get("snr_shift_scale", 3.0)),
            zero_snr=bool(settings.get("rescale_betas_zero_snr", False)),
        )
        return VariancePreserving(alphas, "v")

    @property
    def student_shifts(self) -> tuple[float, ...]:
        """1: its noise schedule is shifted already."""
        return (1.0,)

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        """The linear layers of a block's joint attention and feed-forward."""
        return ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    @property
    def usual_frames(self) -> int:
        """The number of frames of its videos: its folder's value, otherwise 49."""
        return published.FRAMES if self.video is None else self.video.num_frames

    def scheduler_config(self, schedule: Schedule) -> dict[str, Any]:
        """The stock DDIM scheduler, on the model's noise schedule, with ``trailing`` steps.

        Raises:
            UserError: the stock scheduler does not take these steps.
        """
        check_trailing_steps(schedule, self.family)
        noise = without_private(self.scheduler)
        return {
            **published.SCHEDULER_CONFIG,
            **noise,
            "_class_name": "CogVideoXDDIMScheduler",
            "timestep_spacing": "trailing",
            "steps_offset": 0,
            "set_alpha_to_one": True,
        }

    def draw_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draws the noise ``[1, C, T, h, w]`` of one video, time before channels."""
        channels, frames, height, width = shape
        drawn = torch.randn(1, frames, channels, height, width, generator=generator)
        return drawn.transpose(1, 2).contiguous()

    @property
    def fps(self) -> float:
        """Frames per second of its videos: its folder's value, otherwise 8."""
        return published.FPS if self.video is None else self.video.fps

    @property
    def authors_sampler(self) -> AuthorsSampler:
        """DDIM; the authors' other solver, a DPM-Solver, adds noise at each step."""
        return AuthorsSampler("ddim", 1.0)

    @property
    def num_blocks(self) -> int:
        """Number of transformer blocks."""
        return int(self.transformer_config.get("num_layers", 30))

    @property
    def head_dim(self) -> int:
        """Number of channels of a head."""
        return int(self.transformer_config.get("attention_head_dim", 64))

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""
        return int(self.transformer_config.get("num_attention_heads", 30))

    @property
    def text_dim(self) -> int:
        """Width of a text row."""
        return int(self.transformer_config.get("text_embed_dim", 4096))

    @property
    def text_length(self) -> int:
        """Number of text rows that the network attends to, padding included."""
        return int(self.transformer_config.get("max_text_seq_length", 226))

    @property
    def size_rules(self) -> SizeRules:
        """The rules that the size of a video must meet.

        The VAE's decoder doubles all frames but the first one only if a video has an odd number of
        latent frames; so frames are 8k + 1.
        """
        patch = int(self.transformer_config.get("patch_size", 2))
        temporal = int(self.vae_config.get("temporal_compression_ratio", 4))
        levels = len(self.vae_config.get("block_out_channels", range(4)))
        return SizeRules(
            temporal=temporal,
            spatial=2 ** (levels - 1),
            patch=(1, patch, patch),
            channels=int(self.transformer_config.get("in_channels", 16)),
            most_positions=1024,
            frame_step=2 * temporal,
        )

    @property
    def embedding_shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """The shape of a prompt's embedding: rows of text, of which there are always as many."""
        return {TEXT: (self.text_length, self.text_dim)}

    def conditioning(self, embeddings: Sequence[Embedding]) -> Conditioning:
        """The text ``[B, S, D]`` of prompts ``[S, D]``."""
        return Conditioning({TEXT: torch.stack([embedding.text for embedding in embeddings])})

    def empty_conditioning(self, batch: int, text_rows: int) -> Conditioning:
        """A text without values, for measurements."""
        return Conditioning({TEXT: torch.empty(batch, text_rows, self.text_dim)})

    def predict(
        self,
        network: Any,
        x_t: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Computes a network's v at the timestep nearest to the time; see ``forward.predict_v``."""
        timestep = self.interpolant.timestep(time)
        return predict_v(network, x_t, timestep, conditioning[TEXT], dtype)

    def video_tokens(self, output: Any) -> Tensor:
        """The first of the two tensors that a block returns; the second is the text's."""
        tokens = output[0]
        assert isinstance(tokens, Tensor), "a block of CogVideoX returns two tensors"
        return tokens

    def build_transformer(self) -> Any:
        """Builds the network with random weights (none on the meta device)."""
        return untrusted.build_transformer(self.transformer_config)

    def build_vae(self) -> Any:
        """Builds the VAE with random weights (none on the meta device)."""
        return untrusted.build_vae(self.vae_config)

    def build_text_encoder(self) -> Any:
        """Builds a ``T5EncoderModel`` with random weights (none on the meta device)."""
        return build_t5(self.expected_text_encoder_config())

    def load_text_encoder(
        self,
        dtype: torch.dtype,
        device: Device = "cpu",
        on_part: OnPart | None = None,
        stream: bool = False,
    ) -> TextEncoder:
        """Loads the tokenizer and the T5 encoder, frozen; raises as ``load_transformer``."""
        config = self.full_text_encoder_config()
        tokenizer = self.load_tokenizer()
        network = self._load_t5(
            partial(build_t5, config), "text_encoder", dtype, device, on_part, stream
        )
        return PaddedTextEncoder(tokenizer, network, self.text_length)

    def full_text_encoder_config(self) -> dict[str, Any]:
        """The arguments of ``T5Config``.

        Raises:
            UserError: the model has a text encoder of another kind.
        """
        config = self.source.config("text_encoder") or {}
        if config.get("model_type") != "t5":
            raise UserError(
                f"teacher.path: the text encoder of {self.path} is a {config.get('model_type')}, "
                "not the t5 that CogVideoX uses; copy the model's own"
            )
        return config

    def expected_text_encoder_config(self) -> Mapping[str, Any]:
        """The same without a download: T5-XXL's without a file here."""
        file = Path(self.source.root) / "text_encoder" / "config.json"
        return self.full_text_encoder_config() if file.is_file() else T5_XXL

    def normalized_latents(self, vae: Any, encoded: Tensor) -> Tensor:
        """Scales what the VAE encoded, ``[B, C, T, h, w]``, for the network."""
        return encoded * float(vae.config.scaling_factor)

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Decodes scaled latents ``[B, C, T, h, w]`` to video ``[B, F, H, W, 3]`` uint8."""
        return decode_latents(vae, latents)

    def decode_frames(self, vae: Any, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Decodes some frames ``[B, len(frames), 3, H, W]`` with gradient."""
        return decode_frames(vae, latents, frames)

    def _names(self, part: Part) -> Names | None:
        return one_embedding


def open_cogvideox(path: str | Path) -> CogVideoXModel:
    """Reads a model's configuration without loading weights.

    Args:
        path: A folder in diffusers' layout, or a hub id (``zai-org/CogVideoX-2b``).

    Raises:
        UserError: the path is not a CogVideoX text-to-video model, or cannot be trusted.
    """
    try:
        source = diffusers_source(str(model_folder(path)), _CHECKS)
        video, negative = read_video_facts(Path(source.root))
        known = source.root in published.VAE_SCALING and not Path(source.root).is_dir()
        if known:  # nothing is downloaded to look at a job
            config = known_transformer_config(source.root) or {}
            vae = {**published.VAE_CONFIG, "scaling_factor": published.VAE_SCALING[source.root]}
            shift = published.SNR_SHIFT[source.root]
            scheduler = {**published.SCHEDULER_CONFIG, "snr_shift_scale": shift}
            video = VideoFacts(480, 720, published.FRAMES, published.FPS)
        else:
            config = without_private(source.config("transformer") or {})
            vae = without_private(source.config("vae") or {})
            scheduler = without_private(source.scheduler())
        if config.get("in_channels", 16) != vae.get("latent_channels", 16):
            raise UserError(
                f"{path}: the transformer takes {config.get('in_channels', 16)} channels and the "
                f"VAE gives {vae.get('latent_channels', 16)}; copy the model again"
            )
    except UserError as error:
        raise UserError(f"teacher.path: {error}") from error
    return CogVideoXModel(
        str(path), config, vae, source, video, negative or "", scheduler=scheduler
    )
