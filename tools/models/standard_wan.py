"""A small random Wan with every size that other programs fix in their code.

Two heads of 128, a patch of 1x2x2, text embeddings of 4096, a time embedding of 256, 16 latent
channels: what ``weights.formats.programs`` lists. Everything else is as small as it can be, so that
exports of it run in ComfyUI, LightX2V and the other programs within seconds on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from tools.models.wan_folder import make_tokenizer, text_encoder_config, write_wan_folder

WORDS: Final = ["a", "red", "blue", "circle", "square", "moving", "left", "right", "slowly", "and"]
SPREAD: Final = 0.02
"""Standard deviation of what is added to fresh weights, which have many zeros and ones."""


def standard_transformer(layers: int = 2) -> Any:
    """A random ``WanTransformer3DModel`` of these sizes; draws from the global generator."""
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=128,
        in_channels=16,
        out_channels=16,
        text_dim=4096,
        freq_dim=256,
        ffn_dim=512,
        num_layers=layers,
    )
    for parameter in transformer.parameters():
        parameter.data += SPREAD * torch.randn_like(parameter)
    return transformer


def make_standard_wan(folder: Path, layers: int = 2, seed: int = 0) -> Path:
    """Writes the model in the published folder layout; about 20 MB.

    Args:
        folder: A new folder.
        layers: The number of blocks.
        seed: Seed of the weights.
    """
    from diffusers import AutoencoderKLWan
    from transformers import UMT5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = make_tokenizer(WORDS)
        config = text_encoder_config(len(tokenizer), 4096, 1, 2)
        config.d_kv, config.d_ff = 2, 8
        text_encoder = UMT5EncoderModel(config)
        vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 2, 2], num_res_blocks=1)
        transformer = standard_transformer(layers)
    return write_wan_folder(folder, transformer, vae, text_encoder, tokenizer, shift=3.0)
