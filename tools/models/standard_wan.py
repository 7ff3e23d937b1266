"""Small random Wan models with every size that other programs fix in their code.

Two heads of 128, a patch of 1x2x2, text embeddings of 4096, a time embedding of 256, 16 latent
channels (48 of Wan2.2-TI2V-5B), 257 rows of an image with a width of 1280: what
``weights.formats.programs`` lists. Everything else is as small as it can be, so that exports run in
ComfyUI, LightX2V and the other programs within seconds on a CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import torch

from lightx2v_sgmd.families.wan.original import VAE_CONFIG, VAE_OF_WAN22_CONFIG
from tools.models.wan_folder import make_tokenizer, text_encoder_config, write_wan_folder

WORDS: Final = ["a", "red", "blue", "circle", "square", "moving", "left", "right", "slowly", "and"]
SPREAD: Final = 0.02
"""Standard deviation of what is added to fresh weights, which have many zeros and ones."""
IMAGE_WIDTH: Final = 1280
BOUNDARIES: Final = {"t2v pair": 0.875, "i2v pair": 0.9}
"""The times at which two experts meet."""

Kind = Literal["t2v", "i2v", "t2v pair", "i2v pair", "ti2v"]
"""Wan2.1-T2V, Wan2.1-I2V, Wan2.2-T2V-A14B, Wan2.2-I2V-A14B, Wan2.2-TI2V-5B."""


def standard_transformer(layers: int = 2, kind: Kind = "t2v") -> Any:
    """A random ``WanTransformer3DModel`` of these sizes; draws from the global generator."""
    from diffusers import WanTransformer3DModel

    latent = 48 if kind == "ti2v" else 16
    rows = {"image_dim": IMAGE_WIDTH, "added_kv_proj_dim": 256} if kind == "i2v" else {}
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=128,
        in_channels=2 * latent + 4 if kind.startswith("i2v") else latent,
        out_channels=latent,
        text_dim=4096,
        freq_dim=256,
        ffn_dim=512,
        num_layers=layers,
        **rows,
    )
    for parameter in transformer.parameters():
        parameter.data += SPREAD * torch.randn_like(parameter)
    return transformer


def make_standard_wan(folder: Path, layers: int = 2, seed: int = 0, kind: Kind = "t2v") -> Path:
    """Writes a model in the published folder layout; about 20 MB, or 100 MB with CLIP.

    Args:
        folder: A new folder.
        layers: The number of blocks.
        seed: Seed of the weights.
        kind: The published model whose layout it has.
    """
    from transformers import UMT5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = make_tokenizer(WORDS)
        config = text_encoder_config(len(tokenizer), 4096, 1, 2)
        config.d_kv, config.d_ff = 2, 8
        text_encoder = UMT5EncoderModel(config)
        vae = _vae(kind)
        transformer = standard_transformer(layers, kind)
        more: dict[str, Any] = _clip() if kind == "i2v" else {}
        second = standard_transformer(layers, kind) if kind in BOUNDARIES else None
    if kind == "ti2v":
        more["expand_timesteps"] = True
    write_wan_folder(folder, transformer, vae, text_encoder, tokenizer, shift=3.0, **more)
    if second is not None:
        second.save_pretrained(folder / "transformer_2")
        file = folder / "model_index.json"
        index = json.loads(file.read_text())
        index |= {"transformer_2": index["transformer"], "boundary_ratio": BOUNDARIES[kind]}
        file.write_text(json.dumps(index, indent=2) + "\n")
    return folder


def _vae(kind: Kind) -> Any:
    """A small VAE with the published statistics of the latents, which programs have in code."""
    from diffusers import AutoencoderKLWan

    sizes: dict[str, Any] = {"base_dim": 4, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1}
    if kind != "ti2v":
        return AutoencoderKLWan(**{**VAE_CONFIG, **sizes})
    return AutoencoderKLWan(**{**VAE_OF_WAN22_CONFIG, **sizes, "decoder_base_dim": 4})


def _clip() -> dict[str, Any]:
    """A shallow CLIP with the published number of rows and their width."""
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = CLIPVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
    )
    return {"image_encoder": CLIPVisionModel(config), "image_processor": CLIPImageProcessorPil()}
