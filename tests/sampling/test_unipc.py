"""Wan's sampler: its noise levels, its order, and the same latents as the stock pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from lightx2v_sgmd.families.wan.opening import bundled_teacher, open_wan
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.sampling.sampler import VideoSampler, noise_for
from lightx2v_sgmd.sampling.teacher_steps import teacher_schedule
from lightx2v_sgmd.sampling.unipc import UniPC
from tests.stock import stock_pipe


def wans_sigmas(steps: int, shift: float) -> np.ndarray[Any, Any]:
    """The levels of wan/utils/fm_solvers_unipc.py: evenly from sigma_max, which is 0.999."""
    sigmas = np.linspace(0.999, 0, steps + 1)[:-1]
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def test_times_are_wans_whole_numbers() -> None:
    seen: list[float] = []

    def velocity(x_t: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (2,)
        seen.append(float(sigma[0]) * 1000)
        return torch.zeros_like(x_t)

    solver = UniPC(5.0, 50)
    solver.run(velocity, torch.zeros(2, 4))
    assert len(seen) == len(solver) == 50
    np.testing.assert_allclose(seen, np.floor(wans_sigmas(50, 5.0) * 1000), atol=1e-3)


def test_it_is_of_higher_order_than_euler() -> None:
    """On a Gaussian, whose exact flow maps noise to ``mean + spread * noise``."""
    mean, spread = 0.7, 0.4

    def velocity(x_t: Tensor, sigma: Tensor) -> Tensor:
        s, a = sigma[:, None], 1 - sigma[:, None]
        residual = (x_t - a * mean) / (a**2 * spread**2 + s**2)
        return s * residual - (mean + a * spread**2 * residual)

    noise = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    exact = mean + spread * noise
    ours = float((UniPC(5.0, 50).run(velocity, noise) - exact).abs().mean())
    euler = float((rollout(velocity, noise, teacher_schedule(5.0, 50)) - exact).abs().mean())
    assert ours < 0.2 * euler


def test_a_guided_teacher_gives_the_stock_pipelines_latents() -> None:
    class FromWansLevels(UniPCMultistepScheduler):  # type: ignore[misc]
        """Begins where Wan begins; diffusers begins at sigma 1."""

        def set_timesteps(self, steps: int, device: Any = None, **_: Any) -> None:
            unshifted = np.linspace(0.999, 0, steps + 1)[:-1]
            super().set_timesteps(device=device, sigmas=unshifted)

    prompt, negative = "a red circle moving left", "a blue square"
    pipe = stock_pipe(bundled_teacher())
    pipe.scheduler = FromWansLevels(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    stock = pipe(
        prompt,
        negative_prompt=negative,
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=6,
        guidance_scale=3.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).frames
    sampler = VideoSampler(
        open_wan("sprites"), UniPC(5.0, 6), (32, 32, 9), 3.0, negative_prompt=negative
    )
    ours = sampler.latents([prompt], noise_for(sampler.model, 3, sampler.shape))
    torch.testing.assert_close(ours, stock, atol=2e-4, rtol=0)
    assert sampler.nfe == 12
