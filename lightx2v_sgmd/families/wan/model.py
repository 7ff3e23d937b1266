"""Wan2.1 and Wan2.2, from text or an image: sizes, weights and networks of one teacher family.

``opening.py`` makes a ``WanModel`` from a folder, a hub id or a file of weights. Networks are
classes of diffusers and transformers, and weights have diffusers' names in every layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from lightx2v_sgmd.families.conditioning import TEXT, Conditioning, Embedding
from lightx2v_sgmd.families.diffusers_model import DiffusersModel
from lightx2v_sgmd.families.experts import HIGH_NOISE, LOW_NOISE, Expert, only_expert
from lightx2v_sgmd.families.features import Feature, TakesImage
from lightx2v_sgmd.families.size_rules import SizeRules
from lightx2v_sgmd.families.sources.parts import Part
from lightx2v_sgmd.families.stock_pipeline import AuthorsSampler, Pipeline
from lightx2v_sgmd.families.text_rows import (
    TEXT_LENGTH,
    TextEncoder,
    fold_text_padding,
    text_conditioning,
)
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan.forward import (
    decode_latents,
    normalized_latents,
    predict,
    vae_latents,
)
from lightx2v_sgmd.families.wan.frames import decode_frames
from lightx2v_sgmd.families.wan.images import (
    IMAGE_ROWS,
    WanImageEncoder,
    image_conditioning,
    load_image_rows,
)
from lightx2v_sgmd.families.wan.sampling import (
    DEFAULT_SHIFT,
    EXPERTS_STUDENT_SHIFTS,
    IMAGE_SHIFT,
    NEGATIVE_PROMPT,
    STUDENT_SHIFTS,
    WAN22_FPS,
    WAN22_FRAMES,
    WAN22_LATENT_CHANNELS,
    WAN_FPS,
    WAN_FRAMES,
    shift_of_network,
)
from lightx2v_sgmd.families.wan.variants import refuse_variant
from lightx2v_sgmd.files.tensors.safetensors_files import Header
from lightx2v_sgmd.files.tensors.tensor_reader import Names
from lightx2v_sgmd.files.weighted_lora import WeightedLora
from lightx2v_sgmd.interpolants import FLOW, Interpolant
from lightx2v_sgmd.networks.block_loading import Device, OnPart
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.building import build_text_encoder, build_transformer, build_vae
from lightx2v_sgmd.untrusted.configs import check_scheduler
from lightx2v_sgmd.untrusted.json_text import read_json_object

# C channels, T latent frames, h, w latent height and width


@dataclass(frozen=True)
class WanModel(DiffusersModel):
    """A Wan model whose configuration was read, and whose weights were not.

    Attributes:
        text_encoder_config: Arguments of ``UMT5Config``; None if the model's own file has them.
        negative_prompt: The prompt that its authors guide away from: that of Wan's own sampler,
            unless the model's ``video.json`` names another.
        low_noise: The model with the transformer of the times below ``boundary``, for Wan2.2-A14B;
            this model's own transformer then serves the others.
        boundary: The time at which the two transformers meet.
        holds_first_frame: True if the network may be given a first frame, which it sees without
            noise while the other tokens have theirs (Wan2.2-TI2V-5B).
    """

    negative_prompt: str = NEGATIVE_PROMPT
    text_encoder_config: dict[str, Any] | None = None
    low_noise: WanModel | None = None
    boundary: float | None = None
    holds_first_frame: bool = False

    @property
    def experts(self) -> tuple[Expert, ...]:
        """The transformers by time: one of Wan2.1, two of Wan2.2-A14B."""
        if self.low_noise is None or self.boundary is None:
            return only_expert(self)
        high_noise = replace(self, low_noise=None, boundary=None)
        return (
            Expert(HIGH_NOISE, self.boundary, 1.0, high_noise),
            Expert(LOW_NOISE, 0.0, self.boundary, self.low_noise),
        )

    @property
    def family(self) -> str:
        """The family's name, for messages."""
        if self.low_noise is not None:
            return "Wan2.2-A14B"
        return "Wan2.2-TI2V" if self.holds_first_frame else "Wan2.1"

    @property
    def features(self) -> frozenset[Feature]:
        """All, because they were written for these networks."""
        return frozenset(get_args(Feature))

    @property
    def formats(self) -> tuple[str, ...]:
        """The export formats that its students can be written in.

        Files of Wan2.2-TI2V-5B for other programs would have to name its VAE and hold its first
        frame, which those written here do not.
        """
        if self.holds_first_frame:
            return ("diffusers", "lora")
        return ("diffusers", "wan", "comfyui", "lora")

    @property
    def pipeline(self) -> Pipeline:
        """The stock pipeline that runs its students."""
        return Pipeline(
            "WanImageToVideoPipeline" if self.takes_image == "always" else "WanPipeline",
            "WanTransformer3DModel",
            "AutoencoderKLWan",
            "UMT5EncoderModel",
            architecture="wan2.1",
            implementation="https://github.com/Wan-Video/Wan2.1",
            portable_loras=True,
        )

    @property
    def takes_image(self) -> TakesImage:
        """Says if its videos start from an image: ``never``, ``always``, or ``optionally``."""
        if self.transformer_config["in_channels"] != self.latent_channels:
            return "always"
        return "optionally" if self.holds_first_frame else "never"

    @property
    def latent_channels(self) -> int:
        """Number of channels of the latents."""
        return int(self.transformer_config["out_channels"])

    @property
    def interpolant(self) -> Interpolant:
        """The path from data to noise, and what the network predicts on it: flow matching."""
        return FLOW

    @property
    def student_shifts(self) -> tuple[float, ...]:
        """The flow shifts of the steps of its students; see ``sampling``."""
        return STUDENT_SHIFTS if self.low_noise is None else EXPERTS_STUDENT_SHIFTS

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        """The linear layers of a block: both attentions and the feed-forward."""
        return ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

    @property
    def usual_frames(self) -> int:
        """The number of frames of its videos: its folder's value, otherwise its authors'."""
        if self.video is not None:
            return self.video.num_frames
        return WAN22_FRAMES if self.latent_channels == WAN22_LATENT_CHANNELS else WAN_FRAMES

    def scheduler_config(self, schedule: Schedule) -> dict[str, Any]:
        """The stock flow-matching scheduler; see ``Schedule.diffusers_config``."""
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", **schedule.diffusers_config()}

    @property
    def fps(self) -> float:
        """Frames per second of its videos: its folder's value, otherwise that of its release."""
        if self.video is not None:
            return self.video.fps
        return WAN22_FPS if self.latent_channels == WAN22_LATENT_CHANNELS else WAN_FPS

    @property
    def authors_sampler(self) -> AuthorsSampler:
        """Solver and flow shift of its authors.

        For Wan's own networks that is UniPC with the shift of their code, whatever layout they are
        in. For others it is what ``scheduler/scheduler_config.json`` names, Euler or UniPC, with
        its shift: the file of the model's folder, or of the model that a transformer alone has its
        other parts from. Without such a file it is UniPC with Wan's default shift, 5, or 3 for
        image-to-video.

        Raises:
            UserError: the scheduler's file is damaged.
        """
        path = Path(self.path) / "scheduler" / "scheduler_config.json"
        if not path.is_file():
            path = Path(self.source.root) / "scheduler" / "scheduler_config.json"
        usual = IMAGE_SHIFT if self.takes_image == "always" else DEFAULT_SHIFT
        named = AuthorsSampler("unipc", usual)
        if path.is_file():
            config = read_json_object(path)
            check_scheduler(config)
            shift = float(config.get("flow_shift") or config.get("shift") or usual)
            euler = config.get("_class_name") == "FlowMatchEulerDiscreteScheduler"
            named = AuthorsSampler("euler" if euler else "unipc", shift)
        published = shift_of_network(self.transformer_config, len(self.experts))
        return named if published is None else AuthorsSampler("unipc", published)

    @property
    def num_blocks(self) -> int:
        """Number of transformer blocks."""
        return int(self.transformer_config["num_layers"])

    @property
    def head_dim(self) -> int:
        """Number of channels of a head."""
        return int(self.transformer_config["attention_head_dim"])

    @property
    def num_heads(self) -> int:
        """Number of attention heads; a sequence degree must divide it."""
        return int(self.transformer_config["num_attention_heads"])

    @property
    def text_dim(self) -> int:
        """Width of a text row."""
        return int(self.transformer_config["text_dim"])

    @property
    def text_length(self) -> int:
        """Number of text rows that the network attends to, padding included."""
        return TEXT_LENGTH

    @property
    def size_rules(self) -> SizeRules:
        """The rules that the size of a video must meet."""
        patch_t, patch_h, patch_w = self.transformer_config["patch_size"]
        return SizeRules(
            temporal=int(self.vae_config.get("scale_factor_temporal", 4)),
            spatial=int(self.vae_config.get("scale_factor_spatial", 8)),
            patch=(int(patch_t), int(patch_h), int(patch_w)),
            channels=self.latent_channels,
            most_positions=int(self.transformer_config.get("rope_max_seq_len", 1024)),
        )

    def with_loras(self, loras: Sequence[WeightedLora]) -> WanModel:
        """The same model with LoRA files merged into its transformer; reads no weights.

        Of two experts each gets the files that have its name in theirs.

        Raises:
            UserError: a file is missing, damaged, or no LoRA for this network, or does not say for
                which of two experts it is.
        """
        if self.low_noise is None:
            return super().with_loras(loras)
        by_expert: tuple[list[WeightedLora], list[WeightedLora]] = ([], [])
        for lora in loras:
            if lora.expert is None:
                raise UserError(
                    f"lora: {lora.path} does not say which of the two experts of {self.path} it is "
                    "for; rename the file or its folder so that it has high_noise or low_noise in "
                    "its name"
                )
            by_expert[lora.expert].append(lora)
        low_noise = self.low_noise.with_loras(by_expert[1])
        return replace(super().with_loras(by_expert[0]), low_noise=low_noise)

    @property
    def embedding_shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """The shape of a prompt's embedding: rows of text."""
        return {TEXT: (None, self.text_dim)}

    def conditioning(self, embeddings: Sequence[Embedding]) -> Conditioning:
        """The text ``[B, S, D]`` of prompts ``[S_i, D]``, zeros after each, and their images.

        Args:
            embeddings: Each prompt's ``text``, and beside it what ``load_image_encoder`` made of
                its image, if it has one.
        """
        images = [{name: each[name] for name in each if name != TEXT} for each in embeddings]
        return Conditioning({**text_conditioning(embeddings), **image_conditioning(images)})

    def empty_conditioning(self, batch: int, text_rows: int) -> Conditioning:
        """A text without values, for measurements."""
        return Conditioning({TEXT: torch.empty(batch, text_rows, self.text_dim)})

    def video_tokens(self, output: Any) -> Tensor:
        """The tokens ``[B, N, D]`` of the video, which a block returned alone."""
        assert isinstance(output, Tensor), "a block of Wan returns one tensor"
        return output

    def predict(
        self,
        network: Any,
        x_t: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Computes a network's velocity; see ``forward.predict``."""
        return predict(network, x_t, time, conditioning, dtype)

    def fold_text_padding(self, network: Any) -> None:
        """Makes a network attend to the text's padding once; see ``text_rows``.

        Networks that attend to an image stay as they are: diffusers tells the image's rows from the
        text's by the padded length.
        """
        if self.transformer_config.get("image_dim") is None:
            fold_text_padding(network)

    def with_transformer_config(self, config: dict[str, Any]) -> WanModel:
        """The same model with other arguments of ``WanTransformer3DModel``, for both experts."""
        low = self.low_noise
        return replace(
            self,
            transformer_config=config,
            low_noise=None if low is None else low.with_transformer_config(config),
        )

    def refuse_variant(
        self, header: Header, expected: Mapping[str, tuple[int, ...]], what: str
    ) -> None:
        """Refuses weights of an image-to-video model and the like; see ``variants``."""
        refuse_variant(header, expected, what)

    def build_vae(self) -> Any:
        """Builds an ``AutoencoderKLWan`` with random weights (none on the meta device)."""
        return build_vae(self.vae_config)

    def normalized_latents(self, vae: Any, encoded: Tensor) -> Tensor:
        """Normalises what the VAE encoded, ``[B, C, T, h, w]``, for the network."""
        return normalized_latents(vae, encoded)

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Decodes normalised latents ``[B, C, T, h, w]`` to video ``[B, F, H, W, 3]`` uint8."""
        return decode_latents(vae, latents)

    def decode_frames(self, vae: Any, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Decodes some frames ``[B, len(frames), 3, H, W]`` with gradient; see ``frames``."""
        return decode_frames(vae, vae_latents(vae, latents), frames)

    def build_transformer(self) -> Any:
        """Builds a ``WanTransformer3DModel`` with random weights (none on the meta device)."""
        return build_transformer(self.transformer_config)

    def load_text_encoder(
        self,
        dtype: torch.dtype,
        device: Device = "cpu",
        on_part: OnPart | None = None,
        stream: bool = False,
    ) -> TextEncoder:
        """Loads the tokenizer and the umT5 encoder, frozen; raises as ``load_transformer``.

        Args:
            dtype: The precision; ``text_dtype`` gives the one for a teacher.
            device: Device of the encoder.
            on_part: As for ``load_transformer``; the encoder's blocks are its layers.
            stream: True leaves the encoder's blocks in their file until they compute.
        """
        config = self.full_text_encoder_config()
        tokenizer = self.load_tokenizer()
        network = self._load_t5(
            partial(build_text_encoder, config), "text_encoder", dtype, device, on_part, stream
        )
        return TextEncoder(tokenizer, network)

    def build_text_encoder(self) -> Any:
        """Builds a ``UMT5EncoderModel`` with random weights (none on the meta device)."""
        return build_text_encoder(self.expected_text_encoder_config())

    def full_text_encoder_config(self) -> dict[str, Any]:
        """The arguments of ``UMT5Config``.

        Raises:
            UserError: the model has a different text encoder.
        """
        config = self.text_encoder_config or self.source.config("text_encoder") or {}
        if config.get("model_type") != "umt5":
            raise UserError(
                f"teacher.path: the text encoder of {self.path} is a {config.get('model_type')}, "
                "not the umt5 that Wan uses; copy the model's own"
            )
        return config

    def expected_text_encoder_config(self) -> Mapping[str, Any]:
        """The arguments of ``UMT5Config`` without a download: umT5-XXL's without a file here."""
        file = Path(self.source.root) / "text_encoder" / "config.json"
        if self.text_encoder_config is None and not file.is_file():
            return wan_original.TEXT_ENCODER_CONFIG
        return self.full_text_encoder_config()

    def load_image_encoder(self, device: Device = "cpu") -> WanImageEncoder:
        """Loads what encodes an image that videos start from, in float32.

        Raises:
            UserError: as ``load_transformer``, or the model starts from no image.
        """
        if self.takes_image == "never":
            raise UserError(
                f"{self.path} makes videos from text alone; leave out the image, or use an "
                "image-to-video model"
            )
        rows = None
        if self.transformer_config.get("image_dim") is not None:
            rows = load_image_rows(self.source, device)
        spatial = self.size_rules.spatial
        return WanImageEncoder(self.load_vae(device=device), spatial, rows, self.holds_first_frame)

    def empty_image(self, latents: Sequence[int]) -> dict[str, Tensor]:
        """Zeros in place of an image's latents and rows, or of a first frame that is held."""
        if self.takes_image == "never":
            return {}
        if self.holds_first_frame:
            first = torch.zeros(self.latent_channels, 1, *latents[1:])
            return {"first_frame": first, "is_given": torch.ones(())}
        found = {"image_latents": torch.zeros(self.latent_channels, *latents)}
        if (width := self.transformer_config.get("image_dim")) is not None:
            found["image_rows"] = torch.zeros(IMAGE_ROWS, int(width))
        return found

    @property
    def image_encoder_parts(self) -> tuple[Part, ...]:
        """The parts whose weights decide what becomes of an image."""
        clip = self.transformer_config.get("image_dim") is not None
        return ("vae", "image_encoder") if clip else ("vae",)

    def _names(self, part: Part) -> Names | None:
        res_blocks = int(self.vae_config["num_res_blocks"])
        names: dict[Part, Names] = {
            "transformer": wan_original.transformer_names,
            "vae": partial(wan_original.vae_names, res_blocks=res_blocks),
            "text_encoder": wan_original.text_encoder_names,
        }
        return names[part]
