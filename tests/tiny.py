"""Random tiny Wan models in the real folder layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

from tools.models.wan_folder import make_tokenizer, text_encoder_config, write_wan_folder

WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
"""Where diffusers' layout has a transformer's weights, below a model's folder."""

WORDS = ["a", "red", "blue", "circle", "square", "moving", "left", "right", "slowly", "and"]


def make_tiny_experts(folder: Path, boundary: float = 0.875) -> Path:
    """Writes the same with a second random transformer, in the layout of Wan2.2-T2V-A14B."""
    make_tiny_wan(folder)
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


def make_tiny_wan(folder: Path, seed: int = 0, heads: int = 4, layers: int = 2) -> Path:
    """Writes a random model for 32x32 videos of 4k + 1 frames; a few hundred kilobytes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = make_tokenizer(WORDS)
        text_encoder = UMT5EncoderModel(text_encoder_config(len(tokenizer), 16, 1, 2))
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
            scale_factor_spatial=4,
        )
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=heads,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=64,
            num_layers=layers,
        )
        for p in transformer.parameters():  # away from the zeros and ones of a fresh model
            p.data += 0.02 * torch.randn_like(p)
    return write_wan_folder(folder, transformer, vae, text_encoder, tokenizer, shift=3.0)
