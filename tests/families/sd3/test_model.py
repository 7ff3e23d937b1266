"""SD3's family: what it builds, reads and computes, against the stock pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from distill.encoded_videos import encode_videos
from lightx2v_sgmd.families.sd3.model import open_sd3
from lightx2v_sgmd.sampling.sampler import VideoSampler, noise_for
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.sd3 import check_transformer
from tests.tiny_sd3 import make_tiny_sd3
from tests.training import make_job

PROMPTS = ["a red circle", "a blue square moving left " * 20]
BASE = (1000.0, 600.0, 200.0)


@pytest.fixture(scope="module", params=[(True, False), (False, True)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD3-Medium with its three encoders, and SD3.5-Large without T5."""
    t5, qk_norm = request.param
    return make_tiny_sd3(tmp_path_factory.mktemp("sd3") / "tiny", t5=t5, qk_norm=qk_norm)


def test_a_guided_sample_is_the_stock_pipelines(folder: Path) -> None:
    model = open_sd3(folder)
    size = (32, 32, 1)
    sampler = VideoSampler(model, Schedule(BASE, 3.0), size, 5.0, "")
    noise = torch.cat([noise_for(model, seed, sampler.shape) for seed in (3, 4)])
    with torch.no_grad():
        ours = sampler.latents(PROMPTS, noise)
    absent = {} if model.has_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(str(folder), **absent)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPTS,
        height=32,
        width=32,
        sigmas=[each / 1000 for each in BASE],
        guidance_scale=5.0,
        latents=noise[:, :, 0],
        output_type="latent",
    ).images
    torch.testing.assert_close(ours[:, :, 0], theirs, rtol=0, atol=1e-4)
    plain = VideoSampler(model, Schedule(BASE, 3.0), size).latents(PROMPTS, noise)
    assert (plain - ours).abs().max() > 0.01  # so guidance and text count
    stock = pipe(
        PROMPTS,
        height=32,
        width=32,
        sigmas=[each / 1000 for each in BASE],
        guidance_scale=5.0,
        latents=noise[:, :, 0],
        output_type="np",
    ).images
    images = model.decode_latents(sampler.vae, ours)
    assert images.shape == (2, 1, 32, 32, 3)
    difference = images[:, 0].double() - 255 * torch.from_numpy(stock)
    assert difference.abs().max() < 0.51


@pytest.mark.parametrize(
    ("name", "blocks", "keys", "weights"),
    [
        ("stable-diffusion-3-medium-diffusers", 24, 683, 2_028_328_000 + 192**2 * 1536),
        ("stable-diffusion-3.5-large", 38, 1227, 8_056_627_520 + 192**2 * 2432),
    ],
)
def test_the_published_models_are_built_without_weights(
    name: str, blocks: int, keys: int, weights: int
) -> None:
    """SD3-Medium's total without its table of positions, a buffer, is in NVIDIA's guide to AITune.

    Nobody's exact total of SD3.5-Large was found; the next test has the size of its file.
    """
    model = open_sd3(f"stabilityai/{name}")
    shapes = model.transformer_shapes()
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert len(shapes) == keys and count == weights  # with the table of positions
    assert model.num_blocks == blocks
    assert model.latent_shape(1024, 1024, 1) == (16, 1, 128, 128)
    assert model.token_count(1024, 1024, 1) == 4096 and model.embedding_shapes["text"][0] == 333


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("stable-diffusion-3-medium-diffusers", 4.34), ("stable-diffusion-3.5-large", 16.5)],
)
def test_the_weights_have_the_size_of_the_published_files(name: str, gigabytes: float) -> None:
    """They are ``sd3_medium.safetensors`` and ``sd3.5_large.safetensors``, by a mirror's listing.

    These hold the network and the VAE in half precision.
    """
    model = open_sd3(f"stabilityai/{name}")
    with torch.device("meta"):
        vae = model.build_vae()
    count = sum(torch.Size(shape).numel() for shape in model.transformer_shapes().values())
    count += sum(p.numel() for p in vae.parameters())
    assert 2 * count / 1e9 == pytest.approx(gigabytes, rel=0.003)


def test_frames_have_gradient(folder: Path) -> None:
    model = open_sd3(folder)
    vae = model.load_vae()
    latents = torch.randn(1, 4, 1, 16, 16, requires_grad=True)
    frames = model.decode_frames(vae, latents, [0])
    frames.square().mean().backward()
    assert frames.shape == (1, 1, 3, 32, 32) and latents.grad is not None
    encoded = vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode()[:, :, None]
    back = model.normalized_latents(vae, encoded)
    torch.testing.assert_close(back / 1.5305 + 0.0609, encoded)


def test_a_huge_table_of_positions_is_refused() -> None:
    sizes = {"num_attention_heads": 128, "attention_head_dim": 64, "caption_projection_dim": 8192}
    with pytest.raises(UserError, match="table of positions of more than"):
        check_transformer(sizes | {"pos_embed_max_size": 1024})
    check_transformer(sizes | {"pos_embed_max_size": 192})


def test_what_is_no_sd3_is_refused(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "transformer" / "config.json"
    config.parent.mkdir()
    config.write_text('{"_class_name": "SD3Transformer2DModel", "num_layers": 100000}')
    with pytest.raises(UserError, match=r"teacher\.path: .*num_layers is 100000"):
        open_sd3(tmp_path)
    with pytest.raises(UserError, match=r"num_frames: is 5, but this model makes images"):
        open_sd3(folder).latent_shape(32, 32, 5)


def test_videos_are_not_encoded(folder: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "latents"
    videos.mkdir()
    (videos / "a.mp4").touch()
    (videos / "a.txt").write_text("a red circle")
    settings = ("schedule={shift: 3.0}", "video={height: 32, width: 32}")
    with pytest.raises(UserError, match=r"teacher\.path: .* makes images, and encode-videos reads"):
        encode_videos(videos, make_job(folder, tmp_path, *settings), out)
    assert not out.exists()
