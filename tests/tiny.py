"""Random tiny models in the real folder layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    WanTransformer3DModel,
)
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Config,
    T5EncoderModel,
    UMT5EncoderModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.t5_tokenizer import WORDS, make_t5_tokenizer, write_t5_tokenizer
from tools.models.wan_folder import make_tokenizer, text_encoder_config, write_wan_folder

WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
"""Where diffusers' layout has a transformer's weights, below a model's folder."""

Kind = Literal["text", "image", "image latents", "text and image"]
_NEWER_VAE: Final[dict[str, Any]] = {
    "decoder_base_dim": 6,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
}
"""Settings of Wan2.2's own VAE that Wan2.1's has not."""
WAN_LAYERS: Final = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
"""The linear layers of a block of Wan, which get adapters by default."""
T5_ROWS: Final = 61
"""Rows of a small T5's embedding: more than tokens, as in T5-XXL, where 32128 serve 32100."""


def make_tiny_experts(folder: Path, boundary: float = 0.875, kind: Kind = "text") -> Path:
    """Writes the same with a second random transformer, in the layout of Wan2.2-A14B.

    Args:
        folder: The model's folder.
        boundary: The time at which the experts meet; 0.9 in Wan2.2-I2V-A14B.
        kind: ``text`` as Wan2.2-T2V-A14B, or ``image latents`` as Wan2.2-I2V-A14B.
    """
    make_tiny_wan(folder, kind=kind)
    second = WanTransformer3DModel.from_pretrained(folder / "transformer")
    with torch.random.fork_rng():
        torch.manual_seed(9)
        for p in second.parameters():
            p.data += 0.05 * torch.randn_like(p)
    second.save_pretrained(folder / "transformer_2")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"transformer_2": index["transformer"], "boundary_ratio": boundary}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def make_tiny_wan(
    folder: Path, seed: int = 0, heads: int = 4, layers: int = 2, kind: Kind = "text"
) -> Path:
    """Writes a random model for 32x32 videos of 4k + 1 frames; a few hundred kilobytes.

    Args:
        folder: The model's folder.
        seed: Seed of its weights.
        heads: Attention heads, 12 wide.
        layers: Blocks.
        kind: ``text`` as Wan2.1-T2V; ``image`` as Wan2.1-I2V, with CLIP; ``image latents`` as
            Wan2.2-I2V-A14B, without CLIP; ``text and image`` as Wan2.2-TI2V-5B, whose VAE makes one
            latent position of 8x8 pixels here.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = make_tokenizer(WORDS)
        text_encoder = UMT5EncoderModel(text_encoder_config(len(tokenizer), 16, 1, 2))
        newer = kind == "text and image"
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            attn_scales=[],
            temperal_downsample=[True, True],
            latents_mean=[0.1, -0.2, 0.0, 0.3],
            latents_std=[1.5, 0.8, 1.0, 1.2],
            scale_factor_temporal=4,
            scale_factor_spatial=8 if newer else 4,
            **(_NEWER_VAE if newer else {}),
        )
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=heads,
            attention_head_dim=12,
            in_channels=12 if kind.startswith("image") else 4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=64,
            num_layers=layers,
            image_dim=24 if kind == "image" else None,
            added_kv_proj_dim=12 * heads if kind == "image" else None,
        )
        for p in transformer.parameters():  # away from the zeros and ones of a fresh model
            p.data += 0.02 * torch.randn_like(p)
        more: dict[str, Any] = {"expand_timesteps": True} if newer else {}
        if kind == "image":
            more["image_encoder"] = CLIPVisionModel(
                CLIPVisionConfig(
                    hidden_size=24,
                    intermediate_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    image_size=28,
                    patch_size=14,
                    hidden_act="gelu",
                )
            )
            more["image_processor"] = CLIPImageProcessorPil(
                size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
            )
    return write_wan_folder(folder, transformer, vae, text_encoder, tokenizer, 3.0, **more)


def image_transformer() -> WanTransformer3DModel:
    """A random network of one block that attends to an image's rows too."""
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        ffn_dim=16,
        num_layers=1,
        text_dim=8,
        image_dim=8,
        added_kv_proj_dim=24,
    )


def tiny_t5(vocabulary: int, width: int, layers: int) -> T5EncoderModel:
    """A random T5 encoder with rows of that width."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=8,
            d_ff=32,
            num_layers=layers,
            num_heads=2,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            tie_word_embeddings=False,
        )
    )


def make_tiny_cogvideox(folder: Path, seed: int = 0, rotary: bool = False) -> Path:
    """Writes a random CogVideoX for 32x32 videos of 8k + 1 frames, in the layout of 2b, or of 5b.

    The text changes its output by more than a hundredth, as that of ``conftest.tiny_teacher``.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = make_t5_tokenizer(max_length=226)
        text_encoder = tiny_t5(T5_ROWS, width=16, layers=2)
        vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 3,
            up_block_types=("CogVideoXUpBlock3D",) * 3,
            block_out_channels=(4, 4, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            sample_height=32,
            sample_width=32,
            scaling_factor=0.7 if rotary else 1.15258426,
        )
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_embed_dim=16,
            time_embed_dim=24,
            num_layers=2,
            sample_width=8,
            sample_height=8,
            sample_frames=9,
            use_rotary_positional_embeddings=rotary,
        )
        for p in transformer.parameters():  # away from the zeros and ones of a fresh model
            p.data += 0.02 * torch.randn_like(p)
        transformer.patch_embed.text_proj.weight.data *= 5
    scheduler = CogVideoXDDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0 if rotary else 3.0,
        timestep_spacing="trailing",
    )
    CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    ).save_pretrained(folder)
    write_t5_tokenizer(folder / "tokenizer", max_length=226, tokenizer_json=False)
    video = {"height": 32, "width": 32, "num_frames": 9, "fps": 8}
    (folder / "video.json").write_text(json.dumps(video))
    return folder
