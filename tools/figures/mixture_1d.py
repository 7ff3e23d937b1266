"""Fig. 1 of SGMD (arXiv 2605.30116): a symmetric mixture fitted by reverse KL and by Fisher.

    python -m tools.figures.mixture_1d --out mixture_1d.svg

The setting is that of App. D: target, family, grid, optimizer and start as printed. In float64 and
without randomness, so two runs agree to the last digit. Printed beside the fits: where each puts
its mass, since the paper's claim is that reverse KL avoids the target's regions of low density. In
this setting it does not: the Fisher fit is the narrower one and has less mass there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tools.own_files import FIGURE, replacing_own

# X points of the grid; everything is float64

GRID_END, GRID_POINTS = 7.0, 4001
START = (1.0, 1.2)
STEPS, LEARNING_RATE = 2500, 5e-2
TARGET = ((0.75, -1.2, 0.55), (0.25, 2.0, 0.85))  # weight, mean, standard deviation
LOW_DENSITY = 0.1
"""A point counts as low density where the target is below this share of its peak."""

Objective = Callable[[Tensor, Tensor], Tensor]
"""A divergence of the family's member (m, s) from the target."""


@dataclass(frozen=True)
class Fit:
    """The end of an objective's optimisation.

    Attributes:
        objective: Name of the objective.
        m: Half the distance between the two modes.
        s: The common standard deviation.
        value: The objective there.
        gradient: The derivatives in m and s there; near zero at an optimum.
        low_density_mass: The fit's mass where the target's density is low.
        valley_density: The fit's density at 0, between its modes.
    """

    objective: str
    m: float
    s: float
    value: float
    gradient: tuple[float, float]
    low_density_mass: float
    valley_density: float


def grid() -> Tensor:
    """The quadrature points [X]."""
    return torch.linspace(-GRID_END, GRID_END, GRID_POINTS, dtype=torch.float64)


def _log_normal(x: Tensor, mean: Tensor | float, std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)


def _log_components(x: Tensor) -> Tensor:
    """Each weighted component's log density, [2, X]."""
    weights, means, stds = torch.tensor(TARGET, dtype=torch.float64).T[..., None]
    return weights.log() + _log_normal(x, means, stds)


def target_log_density(x: Tensor) -> Tensor:
    """Log p at ``x`` [X]."""
    return torch.logsumexp(_log_components(x), 0)


def target_score(x: Tensor) -> Tensor:
    """d/dx log p at ``x`` [X]: the components' scores, weighted by how likely each is there."""
    _, means, stds = torch.tensor(TARGET, dtype=torch.float64).T[..., None]
    return (_log_components(x).softmax(0) * (means - x) / stds**2).sum(0)


def model_log_density(x: Tensor, m: Tensor, s: Tensor) -> Tensor:
    """Log q of the symmetric pair N(+m, s^2), N(-m, s^2) with equal weights, at ``x`` [X]."""
    pair = torch.logaddexp(_log_normal(x, m, s), _log_normal(x, -m, s))
    return pair - math.log(2)


def model_score(x: Tensor, m: Tensor, s: Tensor) -> Tensor:
    """d/dx log q at ``x`` [X]."""
    return (m * torch.tanh(m * x / s**2) - x) / s**2


def reverse_kl(x: Tensor) -> Objective:
    """KL(q || p) by the trapezoidal rule on ``x``."""
    log_p = target_log_density(x)

    def value(m: Tensor, s: Tensor) -> Tensor:
        log_q = model_log_density(x, m, s)
        return torch.trapezoid(log_q.exp() * (log_q - log_p), x)

    return value


def fisher(x: Tensor) -> Objective:
    """The Fisher divergence, the squared difference of the scores under q, on ``x``."""
    score_p = target_score(x)

    def value(m: Tensor, s: Tensor) -> Tensor:
        difference = model_score(x, m, s) - score_p
        return torch.trapezoid(model_log_density(x, m, s).exp() * difference**2, x)

    return value


OBJECTIVES: dict[str, Callable[[Tensor], Objective]] = {"reverse_kl": reverse_kl, "fisher": fisher}


def fit(name: str, steps: int = STEPS) -> Fit:
    """Optimises one objective as App. D does."""
    x = grid()
    objective = OBJECTIVES[name](x)
    m, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in START)
    adam = torch.optim.Adam([m, s], lr=LEARNING_RATE)
    for _ in range(steps):
        adam.zero_grad()
        objective(m, s).backward()
        adam.step()
        with torch.no_grad():  # The family's bounds; at App. D's start neither is ever reached.
            m.clamp_(min=0)
            s.clamp_(min=1e-3)
    value = objective(m, s)
    gradient = torch.autograd.grad(value, [m, s])
    with torch.no_grad():
        density = model_log_density(x, m, s).exp()
        valley = model_log_density(x.new_zeros(1), m, s).exp()
    p = target_log_density(x).exp()
    low = p < LOW_DENSITY * p.max()
    return Fit(
        name,
        m.item(),
        s.item(),
        value.item(),
        (gradient[0].item(), gradient[1].item()),
        torch.trapezoid(density * low, x).item(),
        valley.item(),
    )


def target_facts() -> dict[str, float]:
    """The same two measures for the target itself."""
    x = grid()
    p = target_log_density(x).exp()
    low = p < LOW_DENSITY * p.max()
    return {
        "low_density_mass": torch.trapezoid(p * low, x).item(),
        "valley_density": target_log_density(x.new_zeros(1)).exp().item(),
    }


def plot(fits: Sequence[Fit], path: Path) -> None:
    """Writes the figure; the file's ending chooses the format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    x = grid()
    colours, names = {"reverse_kl": "#d1495b", "fisher": "#00798c"}, {"fisher": "Fisher"}
    # A fixed salt and no date: equal fits give equal files.
    with plt.rc_context({"svg.hashsalt": "mixture_1d", "font.size": 9}):
        figure, (density, score) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        p = target_log_density(x).exp()
        density.fill_between(x, p, color="#cccccc", label="target p")
        score.plot(x, target_score(x), color="#888888", linewidth=2.5, label="target p")
        for item in fits:
            m, s = (torch.tensor(v, dtype=torch.float64) for v in (item.m, item.s))
            label = f"{names.get(item.objective, 'reverse KL')}: m {item.m:.3f}, s {item.s:.3f}"
            style = {"color": colours[item.objective], "label": label}
            density.plot(x, model_log_density(x, m, s).exp(), **style)
            score.plot(x, model_score(x, m, s), **style)
        density.set(title="density", xlabel="x", xlim=(-5, 5), ylim=(0, None))
        score.set(title="score d/dx log density", xlabel="x", xlim=(-5, 5), ylim=(-10, 10))
        density.legend(frameon=False, loc="upper right")
        with replacing_own(path, FIGURE) as temporary:
            date = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(temporary, dpi=150, metadata=date)
        plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the figure: a .svg, .png or .pdf file")
    parser.add_argument("--steps", type=int, default=STEPS, help="the paper's: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the fits as JSON")
    options = parser.parse_args(arguments)
    fits = [fit(name, options.steps) for name in OBJECTIVES]
    if options.out:
        plot(fits, options.out)
    target = target_facts()
    if options.json:
        print(json.dumps({"fits": [asdict(item) for item in fits], "target": target}, indent=2))
        return
    print(f"{'':12}{'m':>8}{'s':>8}{'objective':>11}{'low-density mass':>18}{'density at 0':>14}")
    blank = f"{'':8}{'':8}{'':11}"
    for item in fits:
        fitted = f"{item.m:8.4f}{item.s:8.4f}{item.value:11.4f}"
        print(
            f"{item.objective:12}{fitted}{item.low_density_mass:18.4f}{item.valley_density:14.4f}"
        )
    print(f"{'target':12}{blank}{target['low_density_mass']:18.4f}{target['valley_density']:14.4f}")


if __name__ == "__main__":
    main()
