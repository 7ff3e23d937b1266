"""Losses: values by hand, the papers' identities in float64, and where gradient goes."""

import pytest
import torch
from torch import Tensor

from lightx2v_sgmd import flow, objectives


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_values_by_hand() -> None:
    x0, x_fake, x_real = (torch.tensor([[a, b]]) for a, b in ((1.0, 2.0), (3.0, 2.0), (0.0, 4.0)))
    assert objectives.fisher(x_fake, x_real, torch.tensor([2.0])).item() == (9 + 4) / 2
    assert objectives.residual_contraction(x0, x_fake).item() == 0.5 * (4 + 0) / 2
    assert objectives.negative_residual(x0, x_fake).item() == -1.0
    assert objectives.normalized_weight(x0, x_real).item() == pytest.approx(1 / 1.5)
    assert objectives.normalized_weight(x0, x0).item() == pytest.approx(1e5)
    weights = objectives.paper_weight(torch.tensor([6e6, 4.0]), max_weight=10.0)
    assert weights.tolist() == [10.0, 4.0]


def test_potentials_have_opposite_gradients_on_x_fake() -> None:
    """Eq. 19: grad NR = r, grad RC = -r (over the number of elements: ours are means)."""
    x0, x_fake = randn(2, 6), randn(2, 6, seed=1).requires_grad_()
    (nr,) = torch.autograd.grad(objectives.negative_residual(x0, x_fake).sum(), x_fake)
    (rc,) = torch.autograd.grad(objectives.residual_contraction(x0, x_fake).sum(), x_fake)
    torch.testing.assert_close(nr, (x0 - x_fake.detach()) / 6, rtol=1e-12, atol=0)
    torch.testing.assert_close(rc, -nr, rtol=0, atol=0)


def test_nr_reaches_x0_through_x_t_as_eq_20_says() -> None:
    """Eq. 20, with the fake score a smooth function: the adjoint against finite differences."""
    noise, x0 = randn(1, 5, seed=1), randn(1, 5)
    sigma = torch.tensor([0.4], dtype=torch.float64)
    matrix = randn(5, 5, seed=2)

    def x_fake(x: Tensor) -> Tensor:
        return torch.tanh(flow.add_noise(x, noise, sigma) @ matrix)

    leaf = x0.clone().requires_grad_()
    loss = objectives.negative_residual(leaf, x_fake(leaf)).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    step = 1e-6
    for k in range(5):
        nudge = torch.zeros_like(x0)
        nudge[0, k] = step
        # sg[x0]: the target stays where it is while x_t moves.
        high = objectives.negative_residual(x0, x_fake(x0 + nudge)).item()
        low = objectives.negative_residual(x0, x_fake(x0 - nudge)).item()
        assert gradient[0, k].item() == pytest.approx((high - low) / (2 * step), rel=1e-6)


def test_prediction_matching_is_rc_over_sigma_squared() -> None:
    x0, noise, v = randn(3, 4), randn(3, 4, seed=1), randn(3, 4, seed=2)
    sigma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x_fake = flow.x0_from_velocity(flow.add_noise(x0, noise, sigma), v, sigma)
    rc = objectives.residual_contraction(x0, x_fake)
    torch.testing.assert_close(objectives.prediction_matching(v, noise - x0), 2 * rc / sigma**2)


def test_stop_gradients() -> None:
    x0, x_fake, x_real = (randn(2, 3, seed=i).requires_grad_() for i in range(3))
    weight = objectives.normalized_weight(x0, x_real)
    losses = [
        objectives.fisher(x_fake, x_real, weight),
        objectives.negative_residual(x0, x_fake),
        objectives.residual_contraction(x0, x_fake),
    ]
    for loss in losses:
        assert loss.shape == (2,)
        grads = torch.autograd.grad(loss.sum(), [x0, x_fake, x_real], allow_unused=True)
        assert grads[0] is None and grads[2] is None and grads[1] is not None  # type: ignore[unreachable]


def test_dmd_has_its_own_normaliser_for_each_sample() -> None:
    """arXiv 2311.18828, Eq. 8, in more dimensions than one; only x0 carries gradient."""
    x0, x_fake, x_real = (randn(3, 2, 2, 2, seed=i).requires_grad_() for i in range(3))
    scales = torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64)
    x_real = (x_real.detach() * scales[:, None, None, None]).requires_grad_()
    losses = objectives.distribution_matching(x0, x_fake, x_real, floor=1e-5)
    grads = torch.autograd.grad(losses.sum(), [x0, x_fake, x_real], allow_unused=True)
    assert [g is not None for g in grads] == [True, False, False]
    for i in range(3):
        normaliser = (x0[i] - x_real[i]).abs().mean()
        expected = ((x_fake[i] - x_real[i]) / normaliser).detach()
        torch.testing.assert_close(grads[0][i], expected / 8, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(losses[i], expected.square().mean() / 2)
    floored = objectives.distribution_matching(x0, x_fake, x0, floor=0.5)
    torch.testing.assert_close(floored, 2 * ((x_fake - x0) ** 2).flatten(1).mean(1))


def test_prediction_matching_stops_at_its_target() -> None:
    velocity, noise, x0 = (randn(2, 3, seed=i).requires_grad_() for i in range(3))
    loss = objectives.prediction_matching(velocity, noise - x0)
    torch.testing.assert_close(loss, (velocity - noise + x0).square().mean(1))
    grads = torch.autograd.grad(loss.sum(), [velocity, x0], allow_unused=True)
    assert grads[0] is not None and grads[1] is None


def test_weight_of_a_term_under_either_weighting() -> None:
    x0, x_real, c = randn(2, 3), randn(2, 3, seed=1), torch.tensor([4.0, 8100.0])
    paper = objectives.term_weight(x0, x_real, c, "paper", 5.0)
    torch.testing.assert_close(paper, torch.tensor([4.0, 5.0]))
    normalized = objectives.term_weight(x0, x_real, c, "normalized", 5.0)
    torch.testing.assert_close(normalized, 1 / (x0 - x_real).abs().mean(1))


def test_hinge_by_hand() -> None:
    on_fake, on_real = torch.tensor([[-2.0, 0.5]]), torch.tensor([[3.0, -1.0]])
    assert objectives.hinge(on_fake, on_real).item() == (0 + 1.5) / 2 + (0 + 2) / 2
