"""The bundled teacher's video VAE: its training, its quality, and its latents' statistics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from rich.progress import track

from lightx2v_sgmd.apps.sprites import world
from tools.benchmarks.muon import Muon
from tools.models.sprites_training import Clock, save_atomically, set_lr, split_for_muon, trapezoid

VAE_CONFIG: dict[str, Any] = {
    "base_dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}


def render_pool(count: int, seed: int, path: Path) -> torch.Tensor:
    """Renders videos once: ``[N, F, H, W, 3]`` uint8, cached at ``path``."""
    if path.exists():
        return torch.load(path, weights_only=True)
    rng = np.random.default_rng(seed)
    videos = torch.empty(count, world.NUM_FRAMES, world.SIZE, world.SIZE, 3, dtype=torch.uint8)
    for index in track(range(count), description=f"rendering {count} videos"):
        video = world.sample_video(rng)[2]
        videos[index] = torch.from_numpy((video * 255).round().astype(np.uint8))
    save_atomically(videos, path)  # type: ignore[arg-type]
    return videos


def to_model_range(videos: torch.Tensor) -> torch.Tensor:
    """``[B, F, H, W, 3]`` uint8 to ``[B, 3, F, H, W]`` float32 in [-1, 1]."""
    return videos.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def train_vae(args: argparse.Namespace) -> None:
    """Minimises foreground-weighted MSE and a small KL; Muon on the kernels, bf16 autocast."""
    torch.manual_seed(args.seed)
    pool = render_pool(args.pool, args.seed, args.work / "vae_pool.pt")
    held_out = pool[:64]
    vae = AutoencoderKLWan(**VAE_CONFIG)
    kernels, vectors = split_for_muon(vae)
    optimizers = [Muon(kernels, lr=0.02), torch.optim.AdamW(vectors, lr=1e-3, weight_decay=0.0)]
    base = [group["lr"] for o in optimizers for group in o.param_groups]
    background = torch.from_numpy(world.BACKGROUND).view(1, 3, 1, 1, 1) * 2 - 1
    path, step, spent = args.work / "vae.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, spent = state["step"], state["seconds"]
        torch.manual_seed(args.seed + step)
    clock = Clock(spent)
    while (progress := clock.seconds() / (60 * args.minutes)) < 1:
        set_lr(optimizers, base, trapezoid(progress, step, warmup=30, decay_from=0.4))
        batch = args.batch if progress > 0.15 else args.batch // 2
        x = to_model_range(pool[torch.randint(64, len(pool), (batch,))])
        with torch.autocast("cpu", torch.bfloat16):
            mean, logvar = vae._encode(x).chunk(2, dim=1)
            mean, logvar = mean.float(), logvar.float().clamp(-12, 4)
            z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
            y = vae._decode(z, return_dict=False)[0].float()
        foreground = ((x - background).abs().amax(1, keepdim=True) > 0.05).float()
        weight = 1 + 4 * foreground
        weight[:, :, 0] *= 2  # the first frame is coded alone and drifts otherwise
        mse = (weight * (y - x) ** 2).mean()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        (mse + args.beta * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        if step % 100 == 0:
            decibels, first = reconstruction_psnr(vae, held_out)
            save_atomically(
                {
                    "model": vae.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                    "step": step,
                    "seconds": clock.seconds(),
                },
                path,
            )
            print(
                f"vae step {step}  {clock.seconds() / 60:.1f}/{args.minutes:.0f} min  "
                f"mse {mse.item():.5f}  kl {kl.item():.3f}  psnr {decibels:.2f} dB  "
                f"first frame {first:.2f} dB",
                flush=True,
            )
    mean, std = latent_statistics(vae, pool[:1024])
    save_atomically(
        {"model": vae.state_dict(), "mean": mean, "std": std}, args.work / "vae_done.pt"
    )


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLWan, videos: torch.Tensor) -> tuple[float, float]:
    """Mean PSNR in dB of whole videos and of their first frames, from latent means in float32."""
    x = to_model_range(videos)
    error = ((vae.decode(vae.encode(x).latent_dist.mode()).sample - x) / 2) ** 2
    whole = -10 * error.mean((1, 2, 3, 4)).log10()
    first = -10 * error[:, :, 0].mean((1, 2, 3)).log10()
    return whole.mean().item(), first.mean().item()


@torch.no_grad()
def latent_statistics(
    vae: AutoencoderKLWan, videos: torch.Tensor
) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation of latent means, for the VAE's configuration."""
    means = [vae.encode(to_model_range(v)).latent_dist.mode() for v in videos.split(64)]
    z = torch.cat(means)
    return z.mean((0, 2, 3, 4)).tolist(), z.std((0, 2, 3, 4)).tolist()


def load_vae(work: Path) -> AutoencoderKLWan:
    """The trained VAE with its latent statistics, frozen."""
    done = torch.load(work / "vae_done.pt", weights_only=True)
    vae = AutoencoderKLWan(**VAE_CONFIG, latents_mean=done["mean"], latents_std=done["std"])
    vae.load_state_dict(done["model"])
    return vae.eval().requires_grad_(False)
