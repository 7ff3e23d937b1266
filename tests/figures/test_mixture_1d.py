"""Fig. 1's fits against a brute-force search with formulas of its own, and the files they make."""

import json
import math
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from tools.figures import mixture_1d as figure

STEPS = 400  # enough for five digits; App. D's 2500 change the ninth
X = np.linspace(-12, 12, 2401)


def normal(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


P = 0.75 * normal(X, -1.2, 0.55) + 0.25 * normal(X, 2.0, 0.85)


def family(m: float, s: float) -> np.ndarray:
    # A floor keeps the logarithm of underflowed tails finite; it weighs nothing in the integrals.
    return 0.5 * normal(X, m, s) + 0.5 * normal(X, -m, s) + 1e-300


def reverse_kl(m: float, s: float) -> float:
    q = family(m, s)
    return float(np.sum(q * np.log(q / P)) * (X[1] - X[0]))


def fisher(m: float, s: float) -> float:
    q = family(m, s)
    difference = np.gradient(np.log(q / P), X)  # scores by finite differences
    return float(np.sum(q * difference**2) * (X[1] - X[0]))


def search(objective: Callable[[float, float], float]) -> tuple[float, float]:
    """The smallest value over a lattice, then over finer ones around it."""
    best, spread = (1.5, 1.2), (1.5, 1.0)
    for _ in range(6):
        lattice = [np.linspace(b - w, b + w, 13) for b, w in zip(best, spread, strict=True)]
        best = min(product(*lattice), key=lambda at: objective(float(at[0]), float(at[1])))
        spread = (spread[0] / 4, spread[1] / 4)
    return float(best[0]), float(best[1])


@cache
def fitted(name: str) -> figure.Fit:
    return figure.fit(name, STEPS)


@pytest.mark.parametrize("objective", [reverse_kl, fisher])
def test_fits_are_the_global_optima(objective: Callable[[float, float], float]) -> None:
    found = fitted(objective.__name__)
    m, s = search(objective)
    assert (found.m, found.s) == pytest.approx((m, s), abs=2e-3)
    assert found.value == pytest.approx(objective(m, s), rel=1e-3)
    assert max(map(abs, found.gradient)) < 1e-6


def test_fisher_is_the_narrower_fit_here() -> None:
    """The script's docstring says this of the paper's claim."""
    kl, fi = fitted("reverse_kl"), fitted("fisher")
    assert fi.s < kl.s and fi.valley_density < kl.valley_density
    assert fi.low_density_mass < kl.low_density_mass
    low = P < 0.1 * P.max()
    for item in (kl, fi):
        mass = np.sum(family(item.m, item.s) * low) * (X[1] - X[0])
        assert item.low_density_mass == pytest.approx(mass, abs=5e-3)  # the region's edge is a step


def test_setting_is_that_of_appendix_d() -> None:
    x = figure.grid()
    assert (x[0].item(), x[-1].item(), len(x), x.dtype) == (-7, 7, 4001, torch.float64)
    assert (figure.START, figure.STEPS, figure.LEARNING_RATE) == ((1.0, 1.2), 2500, 0.05)
    at_grid = np.interp(x.numpy(), X, np.log(P))
    np.testing.assert_allclose(figure.target_log_density(x), at_grid, atol=1e-3)


def test_same_figure_twice_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        figure.main(["--steps", "3", "--json", "--out", str(file)])
        told = json.loads(capsys.readouterr().out)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [item["objective"] for item in told["fits"]] == ["reverse_kl", "fisher"]
    assert told["fits"][0]["m"] == figure.fit("reverse_kl", 3).m
