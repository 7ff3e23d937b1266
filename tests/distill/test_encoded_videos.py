"""Encoded videos are latents as the network sees them: encoding, normalising and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from distill.encoded_videos import encode_videos
from lightx2v_sgmd.families.wan.forward import decode_latents, normalized_latents, vae_latents
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.latents import LatentFolder
from lightx2v_sgmd.files.video import write_video
from tests.training import make_job


@pytest.fixture
def vae(tiny_teacher: Path) -> Any:
    """The stock VAE, which normalises nothing."""
    found = AutoencoderKLWan.from_pretrained(tiny_teacher / "vae").eval()
    assert found.config.latents_mean != [0.0] * 4 and found.config.latents_std != [1.0] * 4
    return found


def statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, ``[1, C, 1, 1, 1]``."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def test_latents_are_normalised_by_mean_and_standard_deviation(vae: Any) -> None:
    """For the network ``(z - mean) / std``, for the VAE ``x std + mean``, channel by channel."""
    z = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = statistics(vae)
    torch.testing.assert_close(normalized_latents(vae, z), (z - mean) / std)
    torch.testing.assert_close(vae_latents(vae, z), z * std + mean)
    torch.testing.assert_close(vae_latents(vae, normalized_latents(vae, z)), z)


@torch.no_grad()
def test_encoded_videos_decode_to_what_the_stock_vae_gives_back(
    tiny_teacher: Path, tmp_path: Path, vae: Any
) -> None:
    """Three videos in two files; each keeps its caption."""
    videos = tmp_path / "videos"
    generator = torch.Generator().manual_seed(1)
    for index in range(3):
        coarse = torch.randint(0, 255, (5, 4, 4, 3), generator=generator, dtype=torch.uint8)
        frames = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
        write_video(frames.numpy(), videos / f"{index}.mp4", 8)
        (videos / f"{index}.txt").write_text(f"circle {index}\n", encoding="utf-8")
    job = make_job(tiny_teacher, tmp_path / "job")
    encode_videos(videos, job, tmp_path / "latents", shard=2, quiet=True)
    folder = LatentFolder(tmp_path / "latents")
    assert folder.prompts == ["circle 0", "circle 1", "circle 2"]
    found = folder.read("x0", range(3))

    read = [imageio.imread(videos / f"{index}.mp4") for index in range(3)]
    pixels = torch.stack([torch.from_numpy(frames) for frames in read])
    pixels = pixels.permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1
    encoded = vae.encode(pixels).latent_dist.mode()
    mean, std = statistics(vae)
    torch.testing.assert_close(found, (encoded - mean) / std, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=0.01)

    # Back: the frames of what the network sees are those of the VAE's own round trip.
    ours = decode_latents(open_wan(str(tiny_teacher)).load_vae(), found)
    theirs = (vae.decode(encoded).sample.clamp(-1, 1) / 2 + 0.5) * 255
    difference = (ours.float() - theirs.permute(0, 2, 3, 4, 1)).abs().max()
    assert difference <= 0.51  # half a grey level is rounding
