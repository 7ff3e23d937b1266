"""Interpolants and predictions, in float64: the general formulas, and flow's as a special case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightx2v_sgmd import flow, objectives
from lightx2v_sgmd.interpolants import (
    FLOW,
    FlowMatching,
    Interpolant,
    VariancePreserving,
    scaled_linear_alphas,
)
from lightx2v_sgmd.system.errors import UserError

ALPHAS = scaled_linear_alphas()
ZERO_SNR = scaled_linear_alphas(snr_shift=3.0, zero_snr=True)
PATHS: dict[str, Interpolant] = {
    "flow": FLOW,
    "flow, v": FlowMatching("v"),
    "flow, epsilon": FlowMatching("epsilon"),
    "VP, velocity": VariancePreserving(ALPHAS, "velocity"),
    "VP, v": VariancePreserving(ZERO_SNR, "v"),
    "VP, epsilon": VariancePreserving(ALPHAS, "epsilon"),
}
TIME = torch.tensor([0.02, 0.5, 0.98], dtype=torch.float64)


class General(Interpolant):
    """Flow's alpha and sigma with the general formulas alone."""

    prediction = "velocity"

    def alpha(self, time: Tensor) -> Tensor:
        return 1 - time

    def sigma(self, time: Tensor) -> Tensor:
        return time

    def timestep(self, time: Tensor) -> Tensor:
        return time


def randn(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """``[count, B, ...]``, a latent of two further dimensions."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, len(TIME), 3, 2, generator=generator, dtype=dtype)


def test_a_path_of_ones_own_states_three_functions() -> None:
    assert Interpolant.__abstractmethods__ == {"alpha", "sigma", "timestep"}


def test_flow_is_the_special_case_of_the_general_formulas() -> None:
    general, later = General(), TIME / 2
    x0, noise, other = randn(3)
    x_t = FLOW.add_noise(x0, noise, TIME)
    close = torch.testing.assert_close
    close(x_t, general.add_noise(x0, noise, TIME))
    close(FLOW.x0(x_t, other, TIME), general.x0(x_t, other, TIME))
    close(FLOW.target(x0, noise, TIME), general.target(x0, noise, TIME))
    close(FLOW.step(x_t, other, TIME, later), general.step(x_t, other, TIME, later))
    close(FLOW.fisher_weight(TIME), general.fisher_weight(TIME))


def test_flow_computes_the_bits_of_its_module() -> None:
    x0, noise, other = randn(3, torch.float32)
    time, later = TIME.float(), TIME.float() / 3
    x_t = FLOW.add_noise(x0, noise, time)
    pairs = {
        "add_noise": (x_t, flow.add_noise(x0, noise, time)),
        "x0": (FLOW.x0(x_t, other, time), flow.x0_from_velocity(x_t, other, time)),
        "step": (FLOW.step(x_t, x0, time, later), flow.euler_to(x_t, x0, time, later)),
        "c(t)": (FLOW.fisher_weight(time), flow.fisher_weight(time)),
        "sigma": (FLOW.sigma(time), time),
        "timestep": (FLOW.timestep(time), 1000 * time),
        "nearest": (FLOW.nearest(time), time),
    }
    assert [name for name, (one, other) in pairs.items() if not torch.equal(one, other)] == []


@pytest.mark.parametrize("name", PATHS)
def test_each_prediction_leads_to_x0_and_to_the_score(name: str) -> None:
    path = PATHS[name]
    x0, noise, other = randn(3)
    x_t = path.add_noise(x0, noise, TIME)
    target = path.target(x0, noise, TIME)
    torch.testing.assert_close(path.x0(x_t, target, TIME), x0)
    torch.testing.assert_close(path.noise(x_t, x0, TIME), noise)
    sigma = flow.per_sample(path.sigma(TIME), noise)
    torch.testing.assert_close(path.score(x_t, x0, TIME), -noise / sigma)
    # A step along the path of the right x0 stays on it, down to the data.
    for later in (TIME / 2, TIME * 0):
        moved = path.step(x_t, x0, TIME, path.nearest(later) if later.any() else later)
        at = path.nearest(later) if later.any() else later
        torch.testing.assert_close(moved, path.add_noise(x0, noise, at))
    # Guidance of predictions is guidance of data predictions.
    guided = path.x0(x_t, flow.guide(target, other, 5.0), TIME)
    cond, uncond = (path.x0(x_t, predicted, TIME) for predicted in (target, other))
    torch.testing.assert_close(guided, flow.guide(cond, uncond, 5.0))


@pytest.mark.parametrize("name", PATHS)
def test_the_weight_turns_data_into_score_residuals(name: str) -> None:
    """Eq. 10 of arXiv 2605.30116: ``c(t) |x_fake - x_real|^2 = |s_fake - s_real|^2``."""
    path = PATHS[name]
    x_fake, x_real, x_t = randn(3)
    scores = path.score(x_t, x_fake, TIME) - path.score(x_t, x_real, TIME)
    expected = path.fisher_weight(TIME) * objectives.mean_per_sample((x_fake - x_real) ** 2)
    torch.testing.assert_close(objectives.mean_per_sample(scores**2), expected)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("flow", lambda alpha, sigma: 1 / sigma**2),
        ("VP, v", lambda alpha, sigma: 1 / sigma**2),
        ("VP, epsilon", lambda alpha, sigma: alpha**2 / sigma**2),
    ],
)
def test_matching_is_rc_by_a_factor_of_the_prediction(name: str, factor: Any) -> None:
    path = PATHS[name]
    x0, noise, predicted = randn(3)
    x_fake = path.x0(path.add_noise(x0, noise, TIME), predicted, TIME)
    rc = objectives.residual_contraction(x0, x_fake)
    expected = 2 * rc * factor(path.alpha(TIME), path.sigma(TIME))
    matching = objectives.prediction_matching(predicted, path.target(x0, noise, TIME))
    torch.testing.assert_close(matching, expected)


def test_values_worked_by_hand() -> None:
    """Alpha 0.6 and sigma 0.8 half way, of a made-up noise schedule; x0 2 and noise -1."""
    alphas = torch.cat([torch.linspace(0.999, 0.6, 500), torch.linspace(0.599, 0, 500)])
    path, time = VariancePreserving(alphas, "v"), torch.tensor([0.5], dtype=torch.float64)
    x0, noise = torch.tensor([[2.0]]).double(), torch.tensor([[-1.0]]).double()
    close = torch.testing.assert_close
    close(path.add_noise(x0, noise, time).item(), 0.6 * 2 - 0.8, rtol=1e-6, atol=0)
    close(path.target(x0, noise, time).item(), -0.6 - 0.8 * 2, rtol=1e-6, atol=0)
    close(path.fisher_weight(time).item(), 0.36 / 0.8**4, rtol=1e-6, atol=0)
    assert path.timestep(time).item() == 499
    exact = [1 - n / 1001 for n in range(1, 1001)]  # a list keeps its 64 bits
    assert VariancePreserving(exact, "v").alpha(time).item() == exact[499]


def test_the_grid_of_a_noise_schedule() -> None:
    path = PATHS["VP, v"]
    time = torch.tensor([0.0, 0.001, 0.5, 0.999, 1.0])
    alphas = [1.0, ZERO_SNR[0], ZERO_SNR[499], ZERO_SNR[998], 0.0]
    assert path.alpha(time).tolist() == torch.tensor(alphas, dtype=torch.float32).tolist()
    torch.testing.assert_close(path.alpha(time) ** 2 + path.sigma(time) ** 2, torch.ones(5))
    assert path.sigma(time)[[0, 4]].tolist() == [0.0, 1.0]
    assert path.alpha(torch.tensor([-0.01, 1.01])).tolist() == [1.0, 0.0]  # a little outside
    drawn = torch.tensor([0.00001, 0.02049, 0.7777, 0.9999])
    assert path.nearest(drawn).tolist() == torch.tensor([0.001, 0.02, 0.778, 1.0]).tolist()
    assert path.timestep(path.nearest(drawn)).tolist() == [0, 19, 777, 999]
    assert path.timestep(drawn).tolist() == [0, 19, 777, 999]
    for part in (0.0015, 0.5, 0.75):  # of the way from one time of the grid to the next
        between = path.alpha(torch.tensor([0.5 + part / 1000], dtype=torch.float64))
        expected = torch.lerp(ZERO_SNR[499:500], ZERO_SNR[500:501], part)
        torch.testing.assert_close(between, expected, rtol=1e-9, atol=0)


def test_a_bad_noise_schedule_is_refused() -> None:
    with pytest.raises(UserError, match="1000 values of alpha that fall"):
        VariancePreserving(ALPHAS[:10], "v")
    with pytest.raises(UserError, match="1000 values of alpha that fall"):
        VariancePreserving(ALPHAS.flip(0), "v")
    for last in (ALPHAS[-2], -0.001):  # it stays, or falls below 0
        with pytest.raises(UserError, match="1000 values of alpha that fall"):
            VariancePreserving([*ALPHAS[:-1].tolist(), float(last)], "v")
    with pytest.raises(UserError, match="cannot start where alpha is 0"):
        VariancePreserving(ZERO_SNR, "epsilon")


@pytest.mark.parametrize("stock", ["cogvideox", "ddim"])
def test_noise_schedules_and_steps_are_those_of_stock_schedulers(stock: str) -> None:
    """Eight steps of a made-up network, in float64: the same states."""
    from diffusers import CogVideoXDDIMScheduler, DDIMScheduler

    kind: Any = {"cogvideox": CogVideoXDDIMScheduler, "ddim": DDIMScheduler}[stock]
    options: dict[str, Any] = {"snr_shift_scale": 3.0} if stock == "cogvideox" else {}
    zero_snr = stock == "cogvideox"
    scheduler = kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if zero_snr else "epsilon",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero_snr,
        clip_sample=False,
        **options,
    )
    path = PATHS["VP, v" if zero_snr else "VP, epsilon"]
    grid = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(
        path.alpha(grid) ** 2, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-9
    )
    scheduler.set_timesteps(8)
    ours = theirs = randn(1)[0]
    for index, timestep in enumerate(scheduler.timesteps):
        time = torch.full((len(TIME),), 1 - index / 8, dtype=torch.float64)
        assert path.timestep(time).tolist() == [int(timestep)] * len(TIME)
        predicted = torch.tanh(ours)
        x0 = path.x0(ours, predicted, time)
        ours = path.step(ours, x0, time, time - 1 / 8)
        theirs = scheduler.step(torch.tanh(theirs), timestep, theirs, return_dict=False)[0]
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)
