"""Wan2.1 text-to-video models in diffusers' layout: what the library needs of a teacher family.

A model is a folder as in ``Wan2.1-T2V-*-Diffusers`` (``transformer/``, ``vae/``, ``text_encoder/``,
``tokenizer/``, ``scheduler/``), a hub id of one, or ``sprites``, the teacher that ships with this
package. Networks are diffusers' and transformers' own classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.models.known import known_transformer_config
from lightx2v_sgmd.quiet import no_library_bars

# B batch, C channels, T latent frames, h, w latent height and width, F video frames, H, W,
# S text tokens, D text width

BUNDLED = "sprites"
TEXT_LENGTH = 512
"""Text tokens that Wan attends to; shorter prompts are followed by rows of zeros."""


@dataclass(frozen=True)
class WanModel:
    """A Wan model that has been looked at but not loaded.

    Attributes:
        path: Folder or hub id.
        transformer_config: Arguments of ``WanTransformer3DModel``.
        vae_config: Arguments of ``AutoencoderKLWan`` (empty when only the network is known).
    """

    path: str
    transformer_config: dict[str, Any]
    vae_config: dict[str, Any]

    @property
    def num_heads(self) -> int:
        """Attention heads; a sequence-parallel degree must divide them."""
        return int(self.transformer_config["num_attention_heads"])

    @property
    def text_dim(self) -> int:
        """Width of a text row."""
        return int(self.transformer_config["text_dim"])

    @property
    def text_length(self) -> int:
        """Text rows that the network attends to, padding included."""
        return TEXT_LENGTH

    def latent_shape(self, height: int, width: int, num_frames: int) -> tuple[int, int, int, int]:
        """``(C, T, h, w)`` of a video's latents.

        Raises:
            UserError: the model cannot make that size.
        """
        temporal = int(self.vae_config.get("scale_factor_temporal", 4))
        spatial = int(self.vae_config.get("scale_factor_spatial", 8))
        _, patch_h, patch_w = self.transformer_config["patch_size"]
        if num_frames < 1 or (num_frames - 1) % temporal:
            near = max(0, round((num_frames - 1) / temporal)) * temporal + 1
            raise UserError(
                f"video.num_frames: {num_frames} is not {temporal}k + 1, which this model's VAE "
                f"needs; use {near}"
            )
        for name, value, patch in (("height", height, patch_h), ("width", width, patch_w)):
            # Stock pipelines also ask for 16.
            multiple = max(16, spatial * patch)
            if value < multiple or value % multiple:
                near = max(1, round(value / multiple)) * multiple
                raise UserError(
                    f"video.{name}: {value} is not divisible by {multiple}, which this model "
                    f"needs; use {near}"
                )
        channels = int(self.transformer_config["in_channels"])
        return channels, (num_frames - 1) // temporal + 1, height // spatial, width // spatial

    def build_transformer(self) -> Any:
        """A ``WanTransformer3DModel`` with random weights (or none, on the meta device)."""
        from diffusers import WanTransformer3DModel

        return WanTransformer3DModel.from_config(self.transformer_config)

    def load_transformer(self, dtype: torch.dtype = torch.float32) -> Any:
        """The network with its weights, safetensors only."""
        from diffusers import WanTransformer3DModel

        return self._load(WanTransformer3DModel, "transformer", dtype)

    def load_vae(self, dtype: torch.dtype = torch.float32) -> Any:
        """The video VAE, frozen."""
        from diffusers import AutoencoderKLWan

        return self._load(AutoencoderKLWan, "vae", dtype).eval().requires_grad_(False)

    def load_text_encoder(self, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """The tokenizer and the umT5 encoder, frozen."""
        from transformers import AutoTokenizer, UMT5EncoderModel

        tokenizer = AutoTokenizer.from_pretrained(self.path, subfolder="tokenizer")
        with no_library_bars():
            network = UMT5EncoderModel.from_pretrained(
                self.path, subfolder="text_encoder", dtype=dtype, use_safetensors=True
            )
        return TextEncoder(tokenizer, network.eval().requires_grad_(False))

    def _load(self, cls: Any, part: str, dtype: torch.dtype) -> Any:
        try:
            with no_library_bars():
                return cls.from_pretrained(
                    self.path, subfolder=part, torch_dtype=dtype, use_safetensors=True
                )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"teacher.path: {part} of {self.path} cannot be loaded: {reason}"
            ) from error


def bundled_teacher() -> Path:
    """Folder of the small teacher that ships with the package."""
    return Path(__file__).resolve().parent.parent / "assets" / BUNDLED


def open_wan(path: str | Path) -> WanModel:
    """Looks at a model without loading weights.

    Args:
        path: A folder, a hub id (``Wan-AI/Wan2.1-T2V-14B-Diffusers``), or ``sprites``.

    Raises:
        UserError: it is not a Wan text-to-video model in diffusers' layout.
    """
    folder = bundled_teacher() if str(path) == BUNDLED else Path(path)
    if folder.is_dir():
        return WanModel(
            str(folder),
            _read_config(folder / "transformer" / "config.json", "WanTransformer3DModel"),
            _read_config(folder / "vae" / "config.json", "AutoencoderKLWan"),
        )
    known = known_transformer_config(str(path))
    if known is not None:
        return WanModel(str(path), known, {})
    if str(path).count("/") == 1 and not str(path).startswith((".", "/", "~")):
        return _open_hub(str(path))
    raise UserError(
        f"teacher.path: {path} is not a folder; name a folder in the layout of "
        "Wan2.1-T2V-1.3B-Diffusers, a hub id, or 'sprites' for the bundled teacher"
    )


def _open_hub(repository: str) -> WanModel:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        transformer, vae = (
            Path(hf_hub_download(repository, f"{part}/config.json"))
            for part in ("transformer", "vae")
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"teacher.path: {repository} is neither a folder here nor a model that the hub gives "
            f"({type(error).__name__}); check the name or the network"
        ) from error
    return WanModel(
        repository,
        _read_config(transformer, "WanTransformer3DModel"),
        _read_config(vae, "AutoencoderKLWan"),
    )


def _read_config(path: Path, expected: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"teacher.path: {path} is missing; the folder must be in diffusers' layout, as "
            "Wan2.1-T2V-1.3B-Diffusers is"
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"teacher.path: {path} is not JSON: {error}") from error
    if config.get("_class_name") != expected:
        raise UserError(
            f"teacher.path: {path} describes a {config.get('_class_name')}, not a {expected}"
        )
    return {key: value for key, value in config.items() if not key.startswith("_")}


class TextEncoder:
    """umT5 with its tokenizer: prompts to the rows that Wan attends to, without padding."""

    def __init__(self, tokenizer: Any, network: Any) -> None:
        self.tokenizer = tokenizer
        self.network = network

    @cached_property
    def _clean(self) -> Callable[[str], str]:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        return prompt_clean  # type: ignore[no-any-return]

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask ``[B, S]``, padded to the longest, cut at ``TEXT_LENGTH``."""
        tokens = self.tokenizer(
            [self._clean(prompt) for prompt in prompts],
            padding="longest",
            max_length=TEXT_LENGTH,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return tokens.input_ids, tokens.attention_mask

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states ``[B, S, D]`` and mask ``[B, S]``; gradient follows the caller's mode."""
        device = self.network.device
        ids, mask = self.tokenize(prompts)
        hidden = self.network(ids.to(device), mask.to(device)).last_hidden_state
        return hidden, mask.to(device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """One ``[S_i, D]`` per prompt, as ``WanPipeline`` computes before its zero padding."""
        hidden, mask = self.forward(prompts)
        return [row[: int(keep.sum())] for row, keep in zip(hidden, mask, strict=True)]


def pad_text(rows: Sequence[Tensor]) -> Tensor:
    """Stacks ``[S_i, D]`` to ``[B, S, D]``, zeros after each: one row at least if there is room."""
    longest = min(max(row.shape[0] for row in rows) + 1, TEXT_LENGTH)
    text = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
    for target, row in zip(text, rows, strict=True):
        target[: row.shape[0]] = row
    return text


def velocity(network: Any, x_t: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """A network's velocity.

    Args:
        network: A ``WanTransformer3DModel``, or an engine around one.
        x_t: ``[B, C, T, h, w]``; cast to the network's precision.
        sigma: ``[B]`` float32.
        text: ``[B, S, D]`` from ``pad_text``; rows of zeros up to ``TEXT_LENGTH`` are understood.

    Returns:
        ``[B, C, T, h, w]`` in the network's precision.
    """
    module = getattr(network, "module", network)
    if not getattr(module, "text_padding_is_folded", False):
        text = torch.nn.functional.pad(text, (0, 0, 0, TEXT_LENGTH - text.shape[1]))
    dtype = module.dtype
    result: Tensor = network(
        hidden_states=x_t.to(dtype),
        timestep=1000 * sigma,
        encoder_hidden_states=text.to(dtype),
        return_dict=False,
    )[0]
    return result


def fold_text_padding(transformer: Any) -> None:
    """Lets the padding rows of the text be attended to once, with their weight, not 500 times.

    Wan pads text to 512 rows of zeros, all of which give the same key and value. A key that is
    there n times adds n times its exponential to the softmax, as one key does whose logit is
    raised by ``log n``. So the result is the same, and a small model on a CPU, whose video has
    fewer tokens than its text, runs two to three times as fast. Large models gain nothing and keep
    the kernels that know no mask.

    The weights travel from the text embedder to the blocks as one more row of the text, which
    the processor takes off again: a pure function of the inputs, so recomputing a block under
    gradient checkpointing sees the same values.
    """
    if getattr(transformer, "text_padding_is_folded", False):
        return
    transformer.condition_embedder.register_forward_hook(_append_padding_bias, with_kwargs=True)
    for block in transformer.blocks:
        block.attn2.set_processor(_FoldedCrossAttention(block.attn2.processor))
    transformer.text_padding_is_folded = True


def _append_padding_bias(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
    text = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
    temb, timestep_proj, embedded, image = output
    is_padding = (text == 0).all(-1)
    present = is_padding.sum(1, keepdim=True)
    wanted = present + (TEXT_LENGTH - text.shape[1])
    weight = wanted / present.clamp(min=1)
    bias = torch.where(is_padding, weight.clamp(min=1e-6).log(), 0.0)
    row = embedded.new_zeros(embedded.shape[0], 1, embedded.shape[2])
    if bias.shape[1] > row.shape[2]:
        raise UserError(
            f"the text has {bias.shape[1]} rows, more than the network's width {row.shape[2]}; "
            "its padding cannot be folded"
        )
    row[:, 0, : bias.shape[1]] = bias.to(row.dtype)
    return temb, timestep_proj, torch.cat([embedded, row], dim=1), image


class _FoldedCrossAttention:
    """Cross-attention that takes the padding weights off the text and uses them as a mask."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Any:
        text, bias = encoder_hidden_states[:, :-1], encoder_hidden_states[:, -1]
        mask = bias[:, None, None, : text.shape[1]]
        return self.processor(attn, hidden_states, text, mask, rotary_emb)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Normalised latents ``[B, C, T, h, w]`` to video ``[B, F, H, W, 3]`` uint8."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.device, vae.dtype)
    std = torch.tensor(vae.config.latents_std).view(shape).to(latents.device, vae.dtype)
    video = vae.decode(latents.to(vae.dtype) * std + mean, return_dict=False)[0]
    video = (video.float() / 2 + 0.5).clamp(0, 1) * 255
    frames: Tensor = video.round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
    return frames
