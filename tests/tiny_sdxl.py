"""Random tiny models of Stable Diffusion XL in the published folder layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny_sd3 import as_clip_was_published, make_clip_tokenizer, tiny_clip_config


def make_tiny_sdxl(folder: Path, seed: int = 0) -> Path:
    """Writes a random SDXL for images of 32x32: three levels, as the published one has.

    Args:
        folder: The model's folder.
        seed: Random seed of the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=32,
            scaling_factor=0.13025,
        )
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16, 24),
            layers_per_block=2,
            norm_num_groups=4,
            cross_attention_dim=20,
            transformer_layers_per_block=[1, 1, 2],
            attention_head_dim=[1, 2, 3],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=12 + 6 * 8,
        )
        for p in unet.parameters():  # away from the zeros and ones of a fresh model
            p.data += 0.05 * torch.randn_like(p)
        first = CLIPTextModel(tiny_clip_config(8, "quick_gelu"))
        second = CLIPTextModelWithProjection(tiny_clip_config(12, "gelu"))
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=make_clip_tokenizer(),
        tokenizer_2=make_clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
    ).save_pretrained(folder)
    for name in ("tokenizer", "tokenizer_2"):
        as_clip_was_published(folder / name)
    settings = folder / "tokenizer_2" / "tokenizer_config.json"
    told = json.loads(settings.read_text()) | {"pad_token": "z"}  # CLIP-G's is "!"
    settings.write_text(json.dumps(told))
    return folder
