"""Where each method takes a Gaussian student: its fixed point, and its known bias.

The world is ``gaussian.py``'s. With an exact fake score a method's expected gradient at the factor
A of the student's covariance is ``F A``, F sharing the eigenvectors of both covariances. By
eigenvalue, at one time, with g_q and g_p the gains of student and teacher and w the weight, in any
interpolant:

    DMD                 w (g_q - g_p)
    TSG-Fisher          w g_q (g_q - g_p)
    NR                  g_q (1 - g_q) lambda (by 1 / sigma if normalized)
    TSG-SIM             w (g_q (1 - g_q) + g_q - g_p)
    SiD, Eq. 30         w (g_q (alpha (1 - g_q) + (1 - alpha)(g_q - g_p)) + alpha (g_q - g_p))
    SiD, published      2 w (g_q - g_p) (1 - g_q + (1 - alpha)(g_q - g_p))

The first two and the last vanish at the teacher. NR does not, although E[x0 - x_fake | x_t] is
zero: x0 - x_fake still correlates with the z that made x0, and ``g_q (1 - g_q)`` is what is left.
Positive is a pull towards zero, so SGMD narrows its student, the more the larger lambda. Stopping
the teacher's gradient in L2 leaves the same term without its counterpart, so TSG-SIM narrows its
student as NR would at lambda 1, and so does Eq. 30 at any alpha. The mean has no such term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.flow import add_noise, fisher_weight
from lightx2v_sgmd.interpolants import FLOW, Interpolant, VariancePreserving, scaled_linear_alphas
from lightx2v_sgmd.methods import ADM, ADP, DMD2, SGMD, TSGSIM, Method, Sample, SiD, TSGFisher
from lightx2v_sgmd.methods.base import PairSample
from tests.methods.gaussian import (
    DIM,
    POINTS,
    TIME,
    TIMES,
    Adam,
    Gaussian,
    Student,
    basis,
    distil,
    factors,
    generator_sample,
    points,
    teacher,
    total,
)

ITERATIONS = 120
CLAMP = 10.0
"""The clamp of c(t)."""
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
PATHS: dict[str, Interpolant] = {
    "flow": FLOW,
    "VP, v": VariancePreserving(scaled_linear_alphas(snr_shift=3.0, zero_snr=True), "v"),
    "VP, epsilon": VariancePreserving(scaled_linear_alphas(), "epsilon"),
}

Rate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""F by eigenvalue at each time, of (g_q, g_p, w)."""


def errors(student: Student) -> tuple[float, float]:
    """The relative errors of mean and covariance."""
    law, data = student.law(), teacher()
    mean = (law.mean - data.mean).norm() / data.mean.norm()
    return mean.item(), ((law.cov - data.cov).norm() / data.cov.norm()).item()


def log_density(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """Up to a constant, of x [T, P, D] under N(mean [T, 1, D], cov [T, D, D]) or one for all."""
    centred = x - mean
    solved = torch.linalg.solve(cov, centred.mT).mT
    return -0.5 * (centred * solved).sum(-1) - 0.5 * torch.logdet(cov)[..., None]


def ratio(real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor]) -> Callable[..., Tensor]:
    """The logits [B, 1] of the discriminator that tells two Gaussians apart as well as possible."""

    def discriminate(x: Tensor, sigma: Tensor) -> Tensor:
        x = x.view(len(TIMES), POINTS, DIM)
        return (log_density(x, *real) - log_density(x, *fake)).view(-1, 1)

    return discriminate


def discriminator_at_x_t(law: Gaussian) -> Callable[..., Tensor]:
    """DMD2's: generated from real at x_t."""
    return ratio(teacher(law.path).noisy(), law.noisy())


def discriminator_a_step_on(law: Gaussian, delta: float = 1 / 64) -> Callable[..., Tensor]:
    """ADM's: fake score from teacher, a step of ``delta`` down the flow from the student's x_t."""
    mean, cov = law.noisy()
    alpha, sigma = factors(law.path)
    later_alpha, later_sigma = factors(law.path, law.path.nearest(TIMES - delta))
    kept = later_sigma / sigma  # of x_t; the rest is the data prediction's
    share = later_alpha - kept * alpha

    def stepped(by: Gaussian) -> tuple[Tensor, Tensor]:
        gains = by.gains
        linear = kept * torch.eye(DIM, dtype=torch.float64) + share * gains
        offset = by.mean - alpha * by.mean @ gains
        return mean @ linear + share * offset, linear @ cov @ linear

    return ratio(stepped(teacher(law.path)), stepped(law))


UNBIASED: dict[str, tuple[Method, Callable[[Gaussian], Callable[..., Tensor]] | None]] = {
    "dmd2": (DMD2(), None),
    "dmd2 with its GAN": (DMD2(gan_weight=1.0), discriminator_at_x_t),
    "tsg_fisher": (TSGFisher(), None),
    "tsg_fisher, paper": (TSGFisher(weighting="paper", max_weight=CLAMP), None),
    "sgmd at lambda 0": (SGMD(lambda_=0.0), None),
    "sgmd that ends without NR": (SGMD(lambda_=0.1, nr_iterations=40), None),
    "sid": (SiD(), None),
    "sid at 1.2": (SiD(alpha=1.2), None),
    "sid at 0.5, paper": (SiD(alpha=0.5, weighting="paper", max_weight=CLAMP), None),
    "adm": (ADM(), discriminator_a_step_on),
}


UNBIASED_IN_VP = ("dmd2 with its GAN", "tsg_fisher, paper", "sgmd at lambda 0", "sid", "adm")


@pytest.mark.parametrize(
    ("case", "path"),
    [*((case, "flow") for case in UNBIASED), *((case, "VP, v") for case in UNBIASED_IN_VP)],
)
def test_unbiased_methods_reach_the_teacher(case: str, path: str) -> None:
    method, discriminator = UNBIASED[case]
    mean, cov = errors(distil(method, ITERATIONS, discriminator=discriminator, path=PATHS[path])[0])
    assert mean < 1e-4 and cov < 1e-4


FAMILIES = ("zai-org/CogVideoX-2b", "zai-org/CogVideoX-5b", SDXL)


@pytest.mark.parametrize("name", FAMILIES)
def test_students_reach_a_teacher_in_the_interpolant_of_its_family(name: str) -> None:
    """The discrete betas are those of the published scheduler."""
    path = open_model(name).interpolant
    assert isinstance(path, VariancePreserving)
    method, discriminator = UNBIASED["adm"]
    mean, cov = errors(distil(method, ITERATIONS, discriminator=discriminator, path=path)[0])
    assert mean < 1e-4 and cov < 1e-4


@pytest.mark.parametrize("path", ["flow", "VP, v", "VP, epsilon"])
def test_pretraining_on_pairs_reaches_the_teacher(path: str) -> None:
    """ADP with ideal discriminators; the flow takes noise z to ``root(cov) z + mean``."""
    method, student = ADP(vision_encoder="unused"), Student.fresh(PATHS[path])
    data, noise = teacher(), points()[1]
    real = Student.at(data.mean, data.cov).sample().detach()
    learner = Adam(student.factor, student.shift, (0.008, 0.1))
    for i in range(ITERATIONS):
        law = student.law()
        pixels = ratio((data.mean, data.cov), (law.mean, law.cov))
        sample = PairSample(
            student.sample(),
            real,
            noise,
            TIME,
            discriminator_at_x_t(law),
            lambda x, discriminator=pixels: discriminator(x, TIME),  # type: ignore[misc]
            PATHS[path],
        )
        learner.step(total(method.pair_generator_losses(sample)), i / ITERATIONS)
    mean, cov = errors(student)
    assert mean < 1e-4 and cov < 1e-4


def sgmd(lambda_: float) -> Rate:
    return lambda q, p, w: w * q * (q - p) + lambda_ * q * (1 - q)


def eq_30(alpha: float) -> Rate:
    return lambda q, p, w: w * (q * (alpha * (1 - q) + (1 - alpha) * (q - p)) + alpha * (q - p))


def predicted(rate: Rate, weight: Tensor, path: Interpolant = FLOW) -> Tensor:
    """The eigenvalues at which the rate, summed over times, is zero: by bisection."""
    data = torch.linalg.eigvalsh(teacher().cov)
    a, s, w = path.alpha(TIMES)[:, None], path.sigma(TIMES)[:, None], weight[:, None]

    def gain(values: Tensor) -> Tensor:
        return a**2 * values / (a**2 * values + s**2)

    low, high = data * 1e-3, data.clone()
    for _ in range(60):
        middle = (low + high) / 2
        narrowing = rate(gain(middle), gain(data), w).sum(0) > 0
        low, high = torch.where(narrowing, low, middle), torch.where(narrowing, middle, high)
    return low


BIASED: dict[str, tuple[Method, Rate]] = {
    "sgmd at 0.1": (SGMD(lambda_=0.1, weighting="paper", max_weight=CLAMP), sgmd(0.1)),
    "sgmd at 0.5": (SGMD(lambda_=0.5, weighting="paper", max_weight=CLAMP), sgmd(0.5)),
    "tsg_sim": (TSGSIM(weighting="paper", max_weight=CLAMP), eq_30(1.0)),
    "sid, Eq. 30 at 0.5": (
        SiD(form="paper", alpha=0.5, weighting="paper", max_weight=CLAMP),
        eq_30(0.5),
    ),
    "sid, Eq. 30 at 1.2": (
        SiD(form="paper", alpha=1.2, weighting="paper", max_weight=CLAMP),
        eq_30(1.2),
    ),
}


BIASED_IN_VP = ("sgmd at 0.1", "tsg_sim", "sid, Eq. 30 at 1.2")


@pytest.mark.parametrize(
    ("case", "path"),
    [*((case, "flow") for case in BIASED), *((case, "VP, v") for case in BIASED_IN_VP)],
)
def test_biased_methods_end_where_the_theory_says(case: str, path: str) -> None:
    method, rate = BIASED[case]
    law = distil(method, ITERATIONS, path=PATHS[path])[0].law()
    assert (law.mean - teacher().mean).norm() < 1e-4 * teacher().mean.norm()
    by_vector = basis().T @ law.cov @ basis()  # ascending, as eigvalsh sorts
    weight = PATHS[path].fisher_weight(TIMES).clamp(max=CLAMP)
    expected = predicted(rate, weight, PATHS[path])
    torch.testing.assert_close(by_vector, torch.diag(expected), rtol=1e-4, atol=1e-4)
    narrower = expected / torch.linalg.eigvalsh(teacher().cov)
    assert narrower.max() < 0.99  # there is a bias to speak of


@pytest.mark.parametrize("lambda_", [0.02, 0.1])
def test_normalized_sgmd_narrows_its_student_in_proportion_to_lambda(lambda_: float) -> None:
    """The theory with each time's mean weight, from which a sample's weight strays by some 10%."""
    student, sample = distil(SGMD(lambda_=lambda_), ITERATIONS)
    assert sample.x_real is not None and errors(student)[0] < 1e-3
    weight = 1 / (sample.x0 - sample.x_real).detach().abs().mean(1)
    weight = weight.view(len(TIMES), POINTS).mean(1)
    potential = lambda_ / TIMES[:, None]
    expected = predicted(lambda q, p, w: w * q * (q - p) + potential * q * (1 - q), weight)
    found = torch.diag(basis().T @ student.law().cov @ basis())
    torch.testing.assert_close(found, expected, rtol=0.08, atol=0)
    assert 0.5 * lambda_ < 1 - (found / torch.linalg.eigvalsh(teacher().cov)).mean() < 2 * lambda_


TRACKED: dict[str, tuple[Method, Rate, str]] = {
    "sgmd": (SGMD(lambda_=0.1, weighting="paper", max_weight=CLAMP), sgmd(0.1), "flow"),
    "sgmd that ends without NR": (
        SGMD(lambda_=0.1, nr_iterations=80, weighting="paper", max_weight=CLAMP),
        sgmd(0.0),
        "flow",
    ),
    "dmd2": (DMD2(), sgmd(0.0), "flow"),
    "tsg_fisher": (TSGFisher(weighting="paper", max_weight=CLAMP), sgmd(0.0), "flow"),
    "dmd2, v": (DMD2(fake_score_updates=2), sgmd(0.0), "VP, v"),
    "dmd2, epsilon": (DMD2(fake_score_updates=2), sgmd(0.0), "VP, epsilon"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TRACKED)
def test_a_learned_fake_score_leads_to_the_same_place(case: str) -> None:
    """Learned by the method's own loss, in as many updates as it asks for."""
    method, rate, name = TRACKED[case]
    path = PATHS[name]
    iterations = 2 * ITERATIONS if method.fake_score_updates == 1 else ITERATIONS
    law = distil(method, iterations, tracked=True, path=path)[0].law()
    assert (law.mean - teacher().mean).norm() < 0.02 * teacher().mean.norm()
    expected = torch.diag(predicted(rate, path.fisher_weight(TIMES).clamp(max=CLAMP), path))
    assert (basis().T @ law.cov @ basis() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.slow
def test_adms_discriminator_learns_to_tell_as_well_as_the_likelihood_ratio() -> None:
    """Hinge losses on a linear head over coordinates and their squares, which suffices here."""
    method, law = ADM(delta=0.15), Student.fresh().law()
    generator = torch.Generator().manual_seed(3)
    weight = torch.zeros(len(TIMES), 2 * DIM + 1, dtype=torch.float64, requires_grad=True)

    def head(x: Tensor, sigma: Tensor) -> Tensor:
        y = x.view(-1, len(TIMES), POINTS, DIM) @ basis()
        features = torch.cat([y, y**2, torch.ones_like(y[..., :1])], -1)
        return (features @ weight[..., None]).view(-1, 1)

    def sample(discriminate: Callable[..., Tensor]) -> Sample:
        x0, noise = torch.randn(2, len(TIME), DIM, generator=generator, dtype=torch.float64)
        x_t = add_noise(x0, noise, TIME)
        x_fake, x_real = law.predict(x_t), teacher().predict(x_t)
        return Sample(x0, noise, TIME, x_t, x_t, x_fake, x_real, discriminate)

    adam = torch.optim.Adam([weight], lr=0.02, betas=(0.9, 0.99))
    for _ in range(150):
        adam.zero_grad()
        total(method.discriminator_losses(sample(head))).backward()
        adam.step()

    def accuracy(discriminate: Callable[..., Tensor]) -> float:
        """On fresh draws: real is to have positive logits, generated negative ones."""
        right: list[Tensor] = []

        def noting(x: Tensor, sigma: Tensor) -> Tensor:
            half = len(x) // 2
            logits = torch.cat([discriminate(part, sigma) for part in (x[:half], x[half:])])
            right.extend([logits[:half] < 0, logits[half:] > 0])
            return logits

        for _ in range(4):
            method.discriminator_losses(sample(noting))
        return torch.cat(right).double().mean().item()

    best = accuracy(discriminator_a_step_on(law, 0.15))
    assert 0.6 < best < 0.99 and accuracy(head) > best - 0.03


def pull(method: Method, paths: Callable[[Sample], Sample] = lambda s: s) -> Tensor:
    """The expected gradient at the student's mean, by time, along the mean's error.

    The student has the teacher's covariance and a mean that is off along one eigenvector, the
    one with the largest eigenvalue. Positive leads back to the teacher.
    """
    off = basis()[:, -1]
    student = Student.at(teacher().mean + 0.5 * off, teacher().cov)
    sample = paths(generator_sample(method, student, student.law().predict))
    terms = torch.stack(list(method.generator_losses(sample).values())).sum(0)
    pulls = [
        torch.autograd.grad(at_time.mean(), student.shift, retain_graph=True)[0] @ off
        for at_time in terms.view(len(TIMES), POINTS)
    ]
    return torch.stack(pulls) * DIM / 0.5


def largest_gain() -> Tensor:
    """g at each time of the eigenvector that ``pull`` is off along."""
    return ((1 - TIMES) * (basis()[:, -1] @ teacher().gains @ basis()[:, -1])).detach()


def test_sids_own_loss_turns_back_if_its_teacher_is_stopped() -> None:
    """Above alpha 1/2 + 1/(2 g), where the mean's rate (1 - (2 alpha - 1) g)(1 - g) is negative."""
    method = SiD(alpha=1.2, weighting="paper", max_weight=CLAMP)
    g, c = largest_gain(), fisher_weight(TIMES).clamp(max=CLAMP)

    def stop_teacher(sample: Sample) -> Sample:
        assert sample.x_real is not None
        return replace(sample, x_real=sample.x_real.detach())

    stopped = pull(method, stop_teacher)
    torch.testing.assert_close(stopped, c * (1 - 1.4 * g) * (1 - g), rtol=1e-9, atol=0)
    assert stopped[0] < 0  # at low noise it drives the student away
    torch.testing.assert_close(pull(method), c * (1 - g) ** 2, rtol=1e-9, atol=0)


def test_the_wrong_sign_within_eq_30_is_outweighed() -> None:
    """Above alpha 1 what goes through the fake score has the wrong sign; the sum never has."""
    method = SiD(form="paper", alpha=1.2, weighting="paper", max_weight=CLAMP)
    g, c = largest_gain(), fisher_weight(TIMES).clamp(max=CLAMP)

    def through_fake_score_alone(sample: Sample) -> Sample:
        return replace(sample, x0=sample.x0.detach())

    part = pull(method, through_fake_score_alone)
    torch.testing.assert_close(part, c * (1 - 1.2) * g * (1 - g), rtol=1e-9, atol=0)
    assert part.max() < 0
    torch.testing.assert_close(pull(method), part + c * 1.2 * (1 - g), rtol=1e-9, atol=0)
    assert pull(method).min() > 0


def test_potential_of_a_perfect_fake_score_still_narrows() -> None:
    """At the teacher itself NR's gradient is ``lambda g (1 - g) A``, and none at the mean."""
    data = teacher()
    student = Student.at(data.mean, data.cov)
    method = SGMD(lambda_=1.0, weighting="paper", max_weight=CLAMP)
    losses = method.generator_losses(generator_sample(method, student, data.predict))
    assert losses["fisher"].abs().max() < 1e-20
    factor, shift = torch.autograd.grad(total(losses), [student.factor, student.shift])
    g = (1 - TIMES.view(-1, 1, 1)) * data.gains
    expected = (g - g @ g).mean(0) @ student.factor / DIM
    torch.testing.assert_close(factor, expected, rtol=1e-9, atol=1e-12)
    assert shift.abs().max() < 1e-12
    assert TIME.unique().tolist() == TIMES.tolist()
