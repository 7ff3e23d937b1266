"""Stock diffusers, which exports and the engine are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline


def stock_pipe(folder: Path) -> Any:
    """The pipeline of a folder in diffusers' layout, without progress bars."""
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_stock(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    num_frames: int = 9,
    output_type: str = "latent",
) -> Any:
    """Runs four steps without guidance at 32x32: latents ``[B, C, T, h, w]``, or frames.

    Args:
        pipe: From ``stock_pipe``.
        prompts: One for each video.
        seeds: Seeds of each video's noise.
        num_frames: ``4k + 1``.
        output_type: ``np`` for frames ``[B, F, H, W, 3]`` from 0 to 1.
    """
    return pipe(
        list(prompts),
        height=32,
        width=32,
        num_frames=num_frames,
        num_inference_steps=4,
        guidance_scale=1.0,
        output_type=output_type,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).frames
