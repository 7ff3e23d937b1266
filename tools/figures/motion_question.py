"""The test of docs/results/motion_question.md: do DMD2's students leave out more of what is rare?

    python -m tools.figures.motion_question ITERATIONS COMPUTE

Each argument is a ``results.json`` of ``compare`` that has the rows ``sgmd`` and ``dmd2``, or the
folder of it; the second may have ``sgmd`` alone, and then DMD2's row comes from the first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from lightx2v_sgmd.measures.bootstrap import Interval, mean_interval

RESAMPLES: Final = 10_000
SEEDS: Final = 5
SMALLEST: Final = 0.03
"""The smallest difference in the share of rare motions that matters, and the bar for "no"."""
SHARES: Final = ("rare", "open_fast", "open_turn", "open_bounce", "open_late", "open_other")
_T_OF_4: Final = 2.776445
"""The 97.5% quantile of Student's t with 4 degrees of freedom (5 seeds)."""


def values(results: Mapping[str, Any], row: str, key: str) -> dict[int, float]:
    """A row's measurement at its last iteration, by seed."""
    found = results["rows"][row]
    return dict(zip(found["seeds"], found["equal_iterations"][key]["values"], strict=True))


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """First minus second, seed by seed: both rows of a seed have the same prompts and noise.

    Raises:
        ValueError: the rows have other seeds, or not ``SEEDS`` of them.
    """
    if first.keys() != second.keys() or len(first) != SEEDS:
        raise ValueError(
            f"the rows have the seeds {sorted(first)} and {sorted(second)}; both need the same "
            f"{SEEDS}"
        )
    return [first[seed] - second[seed] for seed in sorted(first)]


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean of five differences."""
    half = _T_OF_4 * float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    mean = float(np.mean(differences))
    return mean - half, mean + half


def bootstrap_interval(differences: Sequence[float]) -> Interval:
    """The bootstrap's 95% interval of the mean, with seeds as the units."""
    return mean_interval([[d] for d in differences], resamples=RESAMPLES)


def verdict(differences: Sequence[float]) -> str:
    """``yes``, ``no``, ``reversed`` or ``undecided``, by the rule that was set before the runs.

    Args:
        differences: Share of rare motions of SGMD's students minus that of DMD2's, by seed.
    """
    bootstrap = bootstrap_interval(differences)
    assert bootstrap.low is not None and bootstrap.high is not None, "there are five seeds"
    low_t, high_t = t_interval(differences)
    low, high = min(bootstrap.low, low_t), max(bootstrap.high, high_t)
    if low > 0 and bootstrap.mean >= SMALLEST:
        return "yes"
    if high < 0 and bootstrap.mean <= -SMALLEST:
        return "reversed"
    return "no" if high < SMALLEST else "undecided"


def lines(title: str, sgmd: Mapping[str, Any], dmd2: Mapping[str, Any]) -> list[str]:
    """The report of one comparison, as lines."""
    found = [title]
    for key in SHARES:
        differences = difference(values(sgmd, "sgmd", key), values(dmd2, "dmd2", key))
        bootstrap, t = bootstrap_interval(differences), t_interval(differences)
        found.append(
            f"  {key:12} sgmd - dmd2: {bootstrap.mean:+.3f}, bootstrap [{bootstrap.low:+.3f}, "
            f"{bootstrap.high:+.3f}], t [{t[0]:+.3f}, {t[1]:+.3f}]"
        )
        if key == "rare":
            found.append(f"  DMD2's students leave out more: {verdict(differences)}")
    return found


def read_results(path: Path) -> dict[str, Any]:
    """A comparison's results."""
    file = path / "results.json" if path.is_dir() else path
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("iterations", type=Path, help="results at equal iterations")
    parser.add_argument("compute", type=Path, help="results of sgmd with dmd2's compute")
    args = parser.parse_args()
    try:
        equal, compute = read_results(args.iterations), read_results(args.compute)
        report = [
            *lines("At equal iterations", equal, equal),
            *lines("At equal compute", compute, compute if "dmd2" in compute["rows"] else equal),
        ]
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"cannot compare {args.iterations} and {args.compute}: {error}")
    print("\n".join(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
