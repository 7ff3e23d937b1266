"""Random tiny models of Stable Diffusion 3 in the published folder layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tests.t5_tokenizer import make_t5_tokenizer, write_t5_tokenizer
from tests.tiny import T5_ROWS, tiny_t5


def make_tiny_sd3(folder: Path, seed: int = 0, t5: bool = True, qk_norm: bool = False) -> Path:
    """Writes a random SD3 for images of 32x32, in the layout of SD3-Medium, or of SD3.5-Large.

    Args:
        folder: Where it goes.
        seed: Random seed of the weights.
        t5: False leaves the third text encoder out.
        qk_norm: Norms of queries and keys, as in SD3.5-Large.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = make_t5_tokenizer(max_length=512)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=32,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=3,
            joint_attention_dim=32,
            caption_projection_dim=24,
            pooled_projection_dim=20,
            pos_embed_max_size=24,
            qk_norm="rms_norm" if qk_norm else None,
        )
        for p in transformer.parameters():  # away from the zeros and ones of a fresh model
            p.data += 0.05 * torch.randn_like(p)
        transformer.context_embedder.weight.data *= 5
        clips = [
            CLIPTextModelWithProjection(tiny_clip_config(width, activation))
            for width, activation in ((8, "quick_gelu"), (12, "gelu"))
        ]
        encoder = tiny_t5(T5_ROWS, width=32, layers=1)
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=clips[0],
        tokenizer=make_clip_tokenizer(),
        text_encoder_2=clips[1],
        tokenizer_2=make_clip_tokenizer(),
        text_encoder_3=encoder if t5 else None,
        tokenizer_3=tokenizer if t5 else None,
    ).save_pretrained(folder)
    for name in ("tokenizer", "tokenizer_2"):
        as_clip_was_published(folder / name)
    if t5:
        write_t5_tokenizer(folder / "tokenizer_3", max_length=512, tokenizer_json=True)
    return folder


def tiny_clip_config(width: int, activation: str) -> CLIPTextConfig:
    """A small text encoder of CLIP's; ``width`` is that of its rows and of its pooled vector."""
    return CLIPTextConfig(
        vocab_size=len(_clip_vocabulary()),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )


def _clip_vocabulary() -> dict[str, int]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def make_clip_tokenizer() -> CLIPTokenizer:
    """A tokenizer of CLIP's kind that knows letters and one word."""
    merges = [("r", "e"), ("re", "d</w>")]
    return CLIPTokenizer(vocab=_clip_vocabulary(), merges=merges, model_max_length=77)


def as_clip_was_published(folder: Path) -> None:
    """Replaces a tokenizer's one file by the two in which CLIP's were published."""
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(_clip_vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
