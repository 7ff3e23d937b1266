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


def test_each_sample_has_its_own_time() -> None:
    """Two samples, two channels, as many frames as samples: a time goes with its sample."""
    x0, noise = torch.randn(2, 2, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    sigma, later = torch.tensor([0.25, 0.5]), torch.tensor([0.125, 0.5])
    x_t = flow.add_noise(x0, noise, sigma)
    torch.testing.assert_close(x_t[0], 0.75 * x0[0] + 0.25 * noise[0])
    torch.testing.assert_close(x_t[1], 0.5 * x0[1] + 0.5 * noise[1])
    torch.testing.assert_close(flow.x0_from_velocity(x_t, noise - x0, sigma), x0)
    moved = flow.euler_to(x_t, x0, sigma, later)
    torch.testing.assert_close(moved, flow.add_noise(x0, noise, later))
    torch.testing.assert_close(moved[0], x_t[0] - 0.125 * (noise[0] - x0[0]))


def test_an_euler_step_worked_by_hand() -> None:
    x_t, x0, sigma, later = (torch.tensor([value]) for value in (5.0, 3.0, 0.5, 0.25))
    assert flow.euler_to(x_t, x0, sigma, later).item() == 5 + (0.25 - 0.5) * (5 - 3) / 0.5


def test_cubic_times_lie_near_noise() -> None:
    """arXiv 2507.18569, Sec. 4.2.1: ``1 - u^3``, clamped."""
    u = torch.tensor([0.0, 0.5, 0.9, 1.0])
    expected = torch.tensor([0.99, 0.875, 1 - 0.729, 0.02])
    torch.testing.assert_close(flow.cubic_sigmas(u, 0.02, 0.99), expected)


def test_score_times_of_a_part_of_the_path() -> None:
    u = torch.tensor([0.0, 0.5, 1 - 2.0**-24])

    def between(low: float, high: float, least: float = 0.02, most: float = 1.0) -> list[float]:
        return flow.sample_sigmas_between(u, 5.0, low, high, least, most).tolist()

    # Shift 5 leads from 1/6 to 0.5 and from 9/14 to 0.9, and from the middle of them to 17/22.
    middle = torch.tensor(17 / 22)
    torch.testing.assert_close(torch.tensor(between(0.5, 0.9)[1]), middle)
    ends = torch.tensor([0.5 + 1e-6, 0.9 - 1e-6]).tolist()
    assert between(0.5, 0.9)[::2] == ends
    assert between(0.0, 0.5)[0] == torch.tensor(0.02).item()
    assert between(0.0, 0.5, least=0.0)[0] == 0.0
    assert between(0.5, 1.0)[2] > 1 - 5e-7  # up to the end of the path
    assert between(0.5, 0.9, most=0.8)[2] == torch.tensor(0.8).item()
    whole = flow.sample_score_sigmas(u, 5.0, 0.02, 0.98).tolist()
    assert between(0.0, 1.0, most=0.98) == whole


def test_score_times_of_two_parts_do_not_meet() -> None:
    """The experts' boundary is compared with 1000 times a time, and 1000 * 0.511 is below 511."""
    u = torch.tensor([0.0, 1 - 2.0**-24])
    assert 1000 * torch.tensor(0.511) < 511
    for boundary in (0.251, 0.506, 0.511, 0.875, 0.9):
        above = flow.sample_sigmas_between(u, 1.0, boundary, 1.0, 0.0, 1.0)
        below = flow.sample_sigmas_between(u, 1.0, 0.0, boundary, 0.0, 1.0)
        assert (1000 * above >= 1000 * boundary).all()
        assert (1000 * below < 1000 * boundary).all()


def test_noise_that_is_added_from_a_time_on() -> None:
    """From 0.6 on: alpha is 0.3 / 0.4 at 0.7 and 0.2 / 0.4 at 0.8; each sample has its time."""
    x_s, noise = torch.randn(2, 2, 2, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    sigma = torch.tensor([0.7, 0.8], dtype=torch.float64)
    x_t = flow.add_noise_from(x_s, noise, 0.6, sigma)
    target = flow.velocity_from(x_s, noise, 0.6, sigma)
    for row, (time, alpha) in enumerate([(0.7, 0.75), (0.8, 0.5)]):
        beta = (time**2 - alpha**2 * 0.36) ** 0.5
        of_noise = (time + (1 - time) * 0.36 / 0.16) / beta
        torch.testing.assert_close(x_t[row], alpha * x_s[row] + beta * noise[row])
        torch.testing.assert_close(target[row], of_noise * noise[row] - x_s[row] / 0.4)


def test_from_data_on_it_is_the_whole_path() -> None:
    x0, noise = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    sigma = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    whole = flow.add_noise(x0, noise, sigma)
    torch.testing.assert_close(flow.add_noise_from(x0, noise, 0.0, sigma), whole)
    torch.testing.assert_close(flow.velocity_from(x0, noise, 0.0, sigma), noise - x0)
