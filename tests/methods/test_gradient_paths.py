"""Which predictions carry the gradient of each method, and small times in bf16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightx2v_sgmd import flow
from lightx2v_sgmd.methods import ADM, ADP, DMD2, DMDX, SGMD, TSGSIM, Method, Sample, SiD, TSGFisher
from tests.methods.samples import gradients, leaves, logits


def test_what_a_fake_score_should_predict_carries_no_gradient() -> None:
    sample = leaves()
    assert sample.x0.requires_grad and not sample.target.requires_grad
    torch.testing.assert_close(sample.target, sample.noise - sample.x0.detach())
    late = replace(sample, time=torch.tensor([0.7, 0.8, 0.9, 0.98]).double(), phase_end=0.6)
    assert not late.target.requires_grad
    expected = flow.velocity_from(late.x0.detach(), late.noise, 0.6, late.time)
    torch.testing.assert_close(late.target, expected)


PATHS: dict[str, tuple[Method, tuple[bool, bool, bool]]] = {
    # By which of x0, x_fake and x_real the generator's gradient leaves the loss.
    "sgmd": (SGMD(), (False, True, False)),
    "sgmd, paper": (SGMD(weighting="paper"), (False, True, False)),
    "tsg_fisher": (TSGFisher(), (False, True, False)),
    "tsg_sim": (TSGSIM(), (True, True, False)),
    "sid, Eq. 30": (SiD(form="paper"), (True, True, False)),
    "sid": (SiD(), (True, True, True)),
    "dmd2": (DMD2(), (True, False, False)),
    "dmd2 with its GAN": (DMD2(gan_weight=1.0), (True, False, False)),
    "adm": (ADM(), (True, True, False)),
    "dmdx": (DMDX(adp=ADP(vision_encoder="unused")).stages[1].method, (True, True, False)),
}


@pytest.mark.parametrize("case", PATHS)
def test_gradient_paths(case: str) -> None:
    method, expected = PATHS[case]
    sample = leaves()
    losses = method.generator_losses(sample)
    assert all(values.shape == (len(sample.sigma),) for values in losses.values())
    found = gradients(losses, sample)
    assert tuple(g is not None and bool(g.any()) for g in found) == expected
    assert tuple(g is not None for g in found) == expected  # where there is none: exactly none
    # What a method declares is what the loop builds: its graph has the paths that the loss uses.
    assert method.through_fake_score == expected[1] and method.through_teacher == expected[2]

    # The fake score's loss reaches its prediction; x0 is a constant there.
    fixed = replace(sample, x0=sample.x0.detach(), x_t=sample.x_t.detach())
    velocity = (fixed.x_t - sample.x_fake) / flow.per_sample(sample.sigma, sample.x_t)
    tracking = gradients(method.fake_score_losses(replace(fixed, predicted_fake=velocity)), sample)
    assert tracking[0] is None and tracking[1] is not None and tracking[2] is None


@pytest.mark.parametrize("case", PATHS)
@pytest.mark.parametrize("max_weight", [1.0, 1e12])
def test_finite_down_to_002_in_bf16(case: str, max_weight: float) -> None:
    """Every term and every gradient, c(t) unclamped (6e6) and the student at the teacher included.

    Not only the networks' outputs are bf16 here: so is all that the losses compute.
    """
    method = PATHS[case][0]
    if hasattr(method, "max_weight"):
        method = replace(method, max_weight=max_weight)  # type: ignore[type-var]
    sample = leaves()
    sigma = torch.tensor([0.02, 0.02, 0.5, 1.0], dtype=torch.bfloat16)
    x0, noise, x_fake, real = (
        getattr(sample, name).detach().bfloat16().requires_grad_()
        for name in ("x0", "noise", "x_fake", "real")
    )
    x_real = x0.detach().clone()  # where the normaliser is at its floor
    x_real[::2] += 1
    x_real.requires_grad_()
    x_t = flow.add_noise(x0, noise, sigma)
    velocity = (x_t - x_fake) / flow.per_sample(sigma, x_t)
    half = Sample(x0, noise, sigma, x_t, velocity, x_fake, x_real, logits, real)
    terms = {**method.generator_losses(half), **method.fake_score_losses(half)}
    assert all(torch.isfinite(values).all() for values in terms.values())
    for gradient in gradients(terms, half):
        assert gradient is None or torch.isfinite(gradient).all()
