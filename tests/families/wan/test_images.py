"""Wan's networks that start from an image, with stock diffusers as the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from PIL import Image
from torch import Tensor

from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.flow import guide
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.sampling.sampler import VideoSampler
from lightx2v_sgmd.schedule import Schedule
from tests.tiny import Kind, make_tiny_wan

KINDS: tuple[Kind, ...] = ("image", "text and image")
PROMPTS = ["a red circle moving left", "a blue square"]
SIZE = (32, 48, 9)


def picture(width: int = 96, height: int = 64) -> Any:
    generator = torch.Generator().manual_seed(1)
    small = torch.randint(0, 256, (4, 6, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WanModel:
    return open_wan(make_tiny_wan(tmp_path_factory.mktemp("tiny") / "model", kind=request.param))


def conditioning_of(model: WanModel, prompts: list[str], image: Any) -> Conditioning:
    rows = model.load_text_encoder(torch.float32).encode(prompts)
    tensors = model.load_image_encoder().encode(image, SIZE)
    return model.conditioning([row.with_image(tensors) for row in rows])


def stock(model: WanModel, image: Any, **options: Any) -> Tensor:
    pipe = WanImageToVideoPipeline.from_pretrained(model.path)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(**Schedule().diffusers_config())
    height, width, num_frames = SIZE
    frames: Tensor = pipe(
        image=image,
        prompt=PROMPTS[0],
        negative_prompt=PROMPTS[1],
        height=height,
        width=width,
        num_frames=num_frames,
        num_inference_steps=4,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
        **options,
    ).frames
    return frames


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_guided_rollout_equals_stock_diffusers(
    model: WanModel, tmp_path: Path, guidance_scale: float
) -> None:
    shape = model.latent_shape(*SIZE)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))
    network = model.load_transformer()
    both = conditioning_of(model, PROMPTS, picture())

    def predict(x_t: Tensor, time: Tensor) -> Tensor:
        twice = model.predict(network, x_t.repeat(2, 1, 1, 1, 1), time.repeat(2), both)
        cond, uncond = twice.chunk(2)
        return guide(cond, uncond, guidance_scale)

    with torch.no_grad():
        ours = rollout(predict, noise, Schedule())
    expected = stock(model, picture(), guidance_scale=guidance_scale)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    picture().save(tmp_path / "a.png")
    images, (prompt, negative) = {PROMPTS[0]: tmp_path / "a.png"}, PROMPTS
    sampler = VideoSampler(model, Schedule(), SIZE, guidance_scale, negative, images=images)
    torch.testing.assert_close(sampler.latents([prompt], noise), expected, atol=1e-4, rtol=0)
    # The image decides: another one gives another video.
    other = stock(model, picture().transpose(Image.Transpose.ROTATE_180), guidance_scale=1.0)
    assert (other - expected).abs().max() > 0.01


def test_times_of_each_video_decide_where_one_has_an_image(tmp_path: Path) -> None:
    """A batch may have videos with and without a first frame."""
    model = open_wan(make_tiny_wan(tmp_path / "model", kind="text and image"))
    network = model.load_transformer()
    both = conditioning_of(model, PROMPTS, picture())
    x_t, time = torch.randn(2, *model.latent_shape(*SIZE)), torch.tensor([0.3, 0.9])
    given = Conditioning({**both, "is_given": torch.tensor([1.0, 0.0])})
    with torch.no_grad():
        mixed = model.predict(network, x_t, time, given)
        plain = model.predict(network, x_t, time, Conditioning({"text": both["text"]}))
        held = model.predict(network, x_t, time, both)
    torch.testing.assert_close(mixed[1], plain[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[0], held[0], atol=1e-5, rtol=0)
    assert (held[1] - plain[1]).abs().max() > 0.01
    x0 = x_t - time.view(-1, 1, 1, 1, 1) * held
    torch.testing.assert_close(x0[:, :, :1], both["first_frame"], atol=1e-5, rtol=0)
