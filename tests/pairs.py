"""ODE pairs of a small teacher, jobs that train on them, and small vision encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model, SamVisionConfig, SamVisionModel

from lightx2v_sgmd.cli.main import run as run_cli
from tests.training import job_file, make_job

HEADS = "discriminator: {head_every: 1, head_channels: 64, lr: 1.0e-3}"


def collect(teacher: Path, folder: Path, out: Path, *options: str) -> None:
    job = job_file(teacher, folder)
    arguments = [str(job), "--out", str(out), "--count", "6", "--steps", "2", "--shard", "4"]
    assert run_cli(["collect-pairs", *arguments, *options]) == 0


def make_encoder(kind: str, folder: Path) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    torch.manual_seed(0)
    network: Any
    if kind == "sam":
        network = SamVisionModel(
            SamVisionConfig(
                **sizes,
                image_size=64,
                patch_size=16,
                output_channels=16,
                mlp_dim=64,
                window_size=2,
                global_attn_indexes=[1, 3],
                initializer_range=0.02,
            )
        )
    else:
        network = Dinov2Model(Dinov2Config(**sizes, image_size=56, patch_size=14))
    network.save_pretrained(folder)
    return folder


def make(teacher: Path, folder: Path, pairs: Path, method: str, *settings: str) -> Any:
    latents = ["data.prompts=latents", f"data.latents={pairs}", f"method={{{method}}}"]
    return make_job(teacher, folder, *latents, *settings)
