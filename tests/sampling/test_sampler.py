"""The sampler is the library's rollout with guidance; noise depends on the seed alone."""

from __future__ import annotations

from pathlib import Path

import torch

from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.flow import guide
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.sampling.sampler import VideoSampler, noise_for
from lightx2v_sgmd.schedule import Schedule

WAN = open_wan("sprites")
SIZE = (32, 32, 5)
PROMPTS = ["a red circle", "a blue square moving left"]


def test_noise_is_the_seeds() -> None:
    shape = (4, 2, 3, 3)
    assert torch.equal(noise_for(WAN, 7, shape), noise_for(WAN, 7, shape))
    assert not torch.equal(noise_for(WAN, 7, shape), noise_for(WAN, 8, shape))
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(noise_for(WAN, 7, shape)[0], torch.randn(shape, generator=generator))


def test_guidance_is_the_rollout_of_the_guided_velocity(tiny_teacher: Path) -> None:
    model, schedule = open_wan(tiny_teacher), Schedule()
    sampler = VideoSampler(model, schedule, SIZE, 3.0, "a green thing")
    assert sampler.nfe == 2 * len(schedule)
    noise = torch.cat([noise_for(model, seed, sampler.shape) for seed in (0, 1)])
    network = model.load_transformer(torch.float32).eval()
    encoder = model.load_text_encoder(torch.float32)
    cond = pad_text(encoder.rows(PROMPTS))
    uncond = pad_text(encoder.rows(["a green thing"] * 2))

    def guided(x_t: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        with_text, without = (velocity(network, x_t, sigma, text) for text in (cond, uncond))
        return guide(with_text, without, 3.0)

    with torch.no_grad():
        expected = rollout(guided, noise, schedule)
    torch.testing.assert_close(sampler.latents(PROMPTS, noise), expected, rtol=1e-4, atol=1e-4)


def test_scale_one_runs_no_unconditional_pass_and_batches_change_nothing(
    tiny_teacher: Path,
) -> None:
    done: list[int] = []
    sampler = VideoSampler(open_wan(tiny_teacher), Schedule(), SIZE, batch=1, on_batch=done.append)
    assert sampler.nfe == len(Schedule())
    videos = sampler(PROMPTS, [3, 4])
    assert videos.shape == (2, 5, 32, 32, 3) and videos.dtype.name == "uint8" and done == [1, 1]
    sampler.batch = 2
    together = sampler(PROMPTS, [3, 4])
    assert abs(videos.astype(int) - together.astype(int)).max() <= 1
