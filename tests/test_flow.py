"""The rectified-flow algebra, in float64."""

import torch

from lightx2v_sgmd import flow


def test_values_worked_by_hand() -> None:
    x0, noise, sigma = torch.tensor([[2.0]]), torch.tensor([[-4.0]]), torch.tensor([0.25])
    x_t = flow.add_noise(x0, noise, sigma)
    assert x_t.item() == 0.75 * 2 - 0.25 * 4
    assert flow.x0_from_velocity(x_t, noise - x0, sigma).item() == 2.0
    assert flow.guide(torch.tensor(3.0), torch.tensor(1.0), 5.0).item() == 11.0
    assert flow.guide(torch.tensor(3.0), torch.tensor(1.0), 1.0).item() == 3.0
    assert flow.fisher_weight(torch.tensor(0.5)).item() == 4.0
    three_quarters = torch.tensor(0.75, dtype=torch.float64)
    assert flow.shift_sigma(three_quarters, 8.0).item() == 0.96


def test_score_difference_is_the_weighted_x0_difference() -> None:
    """Eq. 13: |s_fake - s_real|^2 = c(t) |x_fake - x_real|^2."""
    generator = torch.Generator().manual_seed(0)
    x_t, a, b = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    sigma = torch.rand(5, generator=generator, dtype=torch.float64)
    score_a, score_b = (((1 - sigma[:, None]) * x0 - x_t) / sigma[:, None] ** 2 for x0 in (a, b))
    scores = score_a - score_b  # Eq. 2 and 3
    expected = flow.fisher_weight(sigma) * ((a - b) ** 2).sum(1)
    torch.testing.assert_close((scores**2).sum(1), expected, rtol=1e-12, atol=0)


def test_score_times_stay_in_their_range_and_lean_to_noise() -> None:
    u = torch.linspace(0, 1, 1001)[:-1]
    sigma = flow.sample_score_sigmas(u, 5.0, 0.02, 0.98)
    assert sigma.min() == torch.tensor(0.02) and sigma.max() == torch.tensor(0.98)
    assert (sigma >= u.clamp(0.02, 0.98) - 1e-6).all()
    assert sigma.mean() > 0.65
