"""Rows of raw measurements: mean and spread over seeds, at equal iterations and compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.apps.comparison import measuring
from lightx2v_sgmd.apps.comparison.measuring import Measured
from lightx2v_sgmd.apps.comparison.plan import TEACHER, UNDISTILLED, Plan
from lightx2v_sgmd.apps.comparison.saved import read_saved
from lightx2v_sgmd.apps.sprites.measure import frechet_distance
from lightx2v_sgmd.apps.sprites.motion_verdicts import score_motions
from lightx2v_sgmd.apps.sprites.verdicts import score
from lightx2v_sgmd.files.run_files import METRICS
from lightx2v_sgmd.measures.frechet import gaussian_distance
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import read_log

COUNTS: Final = ("forwards", "recomputed", "backwards", "weight_backwards")
"""The counts of a run in each iteration, by role, in passes of one sample."""

_COSTS: Final = ("forward_equivalents", "cpu_seconds", "seconds")
_LARGEST: Final = 1e15
"""A number from which a line of a log is not one of ours, so that sums stay finite."""


@dataclass(frozen=True)
class Cost:
    """The cost of a run's iterations.

    Attributes:
        lines: The costs in each line of the run's ``metrics.jsonl``.
    """

    lines: list[dict[str, Any]]

    def cumulative(self, unit: str) -> NDArray[np.float64]:
        """Cost up to and with each iteration, in ``forwards`` (equivalents) or ``seconds``."""
        key = {"forwards": "forward_equivalents", "seconds": "cpu_seconds"}[unit]
        return np.cumsum([float(line[key]) for line in self.lines])

    def per_iteration(self) -> dict[str, Any]:
        """Means; the first iteration, which warms up, does not count for the seconds."""
        counts = {name: _mean_by_role([line[name] for line in self.lines]) for name in COUNTS}
        return {
            "cpu_seconds": float(
                np.mean([line["cpu_seconds"] for line in self.lines[1:] or self.lines])
            ),
            "seconds": float(np.mean([line["seconds"] for line in self.lines[1:] or self.lines])),
            "equivalents": float(np.mean([line["forward_equivalents"] for line in self.lines])),
            "by_role": counts,
            **{name: sum(by_role.values()) for name, by_role in counts.items()},
        }


def read_cost(run: Path) -> Cost:
    """The cost of a run's iterations, from its ``metrics.jsonl``.

    Raises:
        UserError: the log cannot be read, is empty, or a line does not say the cost.
    """
    log = run / METRICS
    lines = read_log(log, (*COUNTS, *_COSTS))
    wrong = next((n for n, line in enumerate(lines, 1) if not _is_cost(line)), None)
    if not lines or wrong is not None:
        where = "is empty" if wrong is None else f"line {wrong} does not say what it cost"
        raise UserError(
            f"{log}: {where}; remove {run} and its results below measured/, and run the same "
            "command again"
        )
    return Cost(lines)


def _is_cost(line: dict[str, Any]) -> bool:
    """True if a line has every cost as a number, and every count as numbers by role."""
    counts = [line.get(name) for name in COUNTS]
    values = [line.get(name) for name in _COSTS]
    for count in counts:
        if not isinstance(count, dict):
            return False
        values.extend(count.values())
    return all(isinstance(value, int | float) and abs(value) < _LARGEST for value in values)


def _mean_by_role(lines: Sequence[dict[str, float]]) -> dict[str, float]:
    return {role: float(np.mean([line.get(role, 0.0) for line in lines])) for role in lines[0]}


class Reference:
    """The teacher's videos, which rows are measured against.

    Distributions are compared with the teacher's of the other seeds, so that its own row shows how
    far two samples of one model are apart. Motion is compared with that of the same seed's videos,
    whose prompts and noise are the same; the teacher's own with the mean over its seeds.

    Args:
        teacher: Measurements by seed.
    """

    def __init__(self, teacher: dict[int, Measured]) -> None:
        self.teacher = teacher
        self.checkable = all(m.right is not None for m in teacher.values())
        if self.checkable:
            self._speeds = {seed: caption_metrics(m)["speed_seen"] for seed, m in teacher.items()}

    def first(self, count: int) -> Reference:
        """The same of the first prompts."""
        return Reference({seed: m.first(count) for seed, m in self.teacher.items()})

    def metrics(self, measured: Measured, seed: int, is_teacher: bool = False) -> dict[str, float]:
        """One set's numbers.

        Args:
            measured: The set.
            seed: The seed of its noise.
            is_teacher: True if it is the teacher's own.
        """
        others = [m for number, m in self.teacher.items() if number != seed]
        pool = others or list(self.teacher.values())
        features = np.array([f for m in pool for f in m.features], dtype=np.float32)
        ours = np.array(measured.features, dtype=np.float32)
        result: dict[str, float] = {}
        if self.checkable and measured.right is not None:
            result["frechet"] = frechet_distance(ours, features)
            result |= caption_metrics(measured)
            speed = result.pop("speed_seen")
            result["motion"] = speed / self._speed(None if is_teacher else seed)
        else:
            units = np.maximum(features.astype(np.float64).std(0), 1e-6)
            result["frechet"] = gaussian_distance(ours, features, units)
        if measured.flow:  # images have none
            result["optflow"] = float(np.mean(measured.flow))
            result["dyndeg"] = float(np.mean(measured.dynamic))
        if measured.distances:
            result["diversity"] = float(np.mean(measured.distances))
        return result

    def _speed(self, seed: int | None) -> float:
        """Pixels per frame of the teacher's objects: of one seed, or where it has none of all."""
        found = self._speeds.get(seed) if seed is not None else None
        mean = float(np.mean(list(self._speeds.values())))
        return max(mean if found is None else found, 1e-6)


def caption_metrics(measured: Measured) -> dict[str, float]:
    """Shares of what captions name and leave open; ``speed_seen`` is in pixels per frame."""
    if measured.motions is not None:
        shown = score_motions(measured.motions)
        return {
            "all_attributes": shown.all_attributes,
            **shown.named,
            "clean": shown.clean,
            "speed_seen": shown.pixels_per_frame,
            "rare": shown.rare,
            **{f"open_{manner}": share for manner, share in shown.open_manners.items()},
        }
    scores = score(measured.verdicts or [])
    return {
        "all_attributes": scores.all_attributes,
        "colour": scores.colour,
        "shape": scores.shape,
        "direction": scores.direction,
        "speed": scores.speed,
        "clean": scores.clean,
        "speed_seen": scores.pixels_per_frame,
        "coverage": scores.entropy,
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (of the sample; None for one value) and the values."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "values": [float(value) for value in values],
    }


def over_seeds(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``spread`` of every number that all of them have."""
    keys = [key for key in metrics[0] if all(key in m for m in metrics)] if metrics else []
    return {
        key: over_seeds([m[key] for m in metrics])
        if isinstance(metrics[0][key], dict)
        else spread([m[key] for m in metrics])
        for key in keys
    }


def seeds_done(plan: Plan, row: str) -> list[int]:
    """The seeds of which a row has its final measurement."""
    step = 0 if row in (TEACHER, UNDISTILLED) else plan.snapshots()[-1]
    return [seed for seed in plan.seeds if plan.measurement(row, seed, step).is_file()]


def budget(plan: Plan, unit: str) -> tuple[str, float] | None:
    """The row that ended with the least compute, and how much that was.

    Args:
        plan: The comparison.
        unit: ``forwards`` (forward equivalents of one sample) or ``seconds`` (of CPU).
    """
    totals = {}
    for row in plan.jobs:
        costs = [read_cost(plan.run(row, seed)) for seed in seeds_done(plan, row)]
        if costs:
            totals[row] = float(np.mean([cost.cumulative(unit)[-1] for cost in costs]))
    if not totals:
        return None
    row = min(totals, key=lambda name: totals[name])
    return row, totals[row]


def step_within(plan: Plan, row: str, unit: str, limit: float) -> tuple[int, float]:
    """The last snapshot of a row within a budget, and the share of it that was spent by then.

    The cost is a mean over seeds. A hundredth over is within, so that rows which cost the same are
    cut at the same step. Without any snapshot in the budget both are 0.
    """
    costs = [read_cost(plan.run(row, seed)).cumulative(unit) for seed in seeds_done(plan, row)]
    spent = np.mean(costs, axis=0) / limit
    step = max((s for s in plan.snapshots() if spent[s - 1] <= 1.01), default=0)
    return step, float(spent[step - 1]) if step else 0.0


def build_results(plan: Plan, unit: str, failures: dict[str, str]) -> dict[str, Any]:
    """Everything that the tables and the report say, as written to ``results.json``."""
    load = lru_cache(maxsize=None)(measuring.load)
    teacher = {seed: load(plan.measurement(TEACHER, seed, 0)) for seed in seeds_done(plan, TEACHER)}
    reference = Reference(teacher)
    limit = budget(plan, unit)
    rows: dict[str, Any] = {}
    for row in (TEACHER, UNDISTILLED):
        sets = {seed: load(plan.measurement(row, seed, 0)) for seed in seeds_done(plan, row)}
        found = [reference.metrics(m, seed, row == TEACHER) for seed, m in sets.items()]
        rows[row] = {"nfe": next(m.nfe for m in sets.values()), "seeds": list(sets)}
        rows[row]["equal_iterations"] = {"step": 0, **over_seeds(found)}
        few = reference.first(plan.settings.curve_prompts)
        level = [
            few.metrics(m.first(plan.settings.curve_prompts), seed, row == TEACHER)
            for seed, m in sets.items()
        ]
        rows[row]["curve"] = [{"step": 0, **over_seeds(level)}]
    for row in plan.jobs:
        rows[row] = _trained_row(plan, row, reference, load, unit, limit)
    costs = [rows[row]["cost"] for row in plan.jobs if "cost" in rows[row]]
    for cost in costs:
        least = min(other["cpu_seconds"]["mean"] for other in costs)
        cost["relative"] = spread([value / least for value in cost["cpu_seconds"]["values"]])
    return {
        "format_version": 1,
        "teacher": plan.job.teacher.path,
        "about": _about(plan),
        "made": plan.makes,
        "captions_checkable": reference.checkable,
        "iterations": plan.job.train.iterations,
        "batch": plan.job.train.micro_batch * plan.job.train.accumulation,
        "seeds": list(plan.seeds),
        "prompts": plan.settings.prompts,
        "curve_prompts": plan.settings.curve_prompts,
        "compute": {
            "unit": unit,
            "cheapest": limit[0] if limit else None,
            "budget": limit[1] if limit else None,
        },
        "rows": rows,
        "failures": failures,
    }


def _about(plan: Plan) -> str:
    """A sentence on teacher and prompts, as they were when the comparison began."""
    path = plan.out / "comparison.json"
    saved = read_saved(path) if path.is_file() else {}
    return str(saved.get("about", plan.about_prompts()))


def _trained_row(
    plan: Plan,
    row: str,
    reference: Reference,
    load: Callable[[Path], Measured],
    unit: str,
    limit: tuple[str, float] | None,
) -> dict[str, Any]:
    method = plan.jobs[row].method
    seeds, last = seeds_done(plan, row), plan.snapshots()[-1]
    result: dict[str, Any] = {
        "method": method.name,
        "fake_score_updates": method.fake_score_updates,
        "seeds": seeds,
    }
    if not seeds:
        return result
    final = {seed: load(plan.measurement(row, seed, last)) for seed in seeds}
    costs = {seed: read_cost(plan.run(row, seed)) for seed in seeds}
    result["nfe"] = next(m.nfe for m in final.values())
    result["cost"] = over_seeds([cost.per_iteration() for cost in costs.values()])
    result["equal_iterations"] = {
        "step": last,
        **over_seeds([reference.metrics(m, seed) for seed, m in final.items()]),
    }
    if limit is not None:
        step, share = step_within(plan, row, unit, limit[1])
        cut = [
            reference.metrics(load(path), seed)
            for seed in seeds
            if (path := plan.measurement(row, seed, step)).is_file()
        ]
        result["equal_compute"] = {"step": step, "share": share, **over_seeds(cut)}
    few = reference.first(plan.settings.curve_prompts)
    result["curve"] = _curve(plan, seeds, row, few, load, costs)
    return result


def _curve(
    plan: Plan,
    seeds: Sequence[int],
    row: str,
    reference: Reference,
    load: Callable[[Path], Measured],
    costs: dict[int, Cost],
) -> list[dict[str, Any]]:
    """Quality against compute, from no training on over the snapshots, on the first prompts."""
    count, last = plan.settings.curve_prompts, plan.snapshots()[-1]
    points = []
    for step in (0, *plan.snapshots()):
        label = row if step else UNDISTILLED
        paths = {
            seed: plan.measurement(label, seed, step, full=step in (0, last)) for seed in seeds
        }
        found = [
            reference.metrics(load(path).first(count), seed)
            for seed, path in paths.items()
            if path.is_file()
        ]
        if not found:
            continue
        compute = {
            unit: float(np.mean([cost.cumulative(unit)[step - 1] for cost in costs.values()]))
            if step
            else 0.0
            for unit in ("forwards", "seconds")
        }
        points.append({"step": step, **compute, **over_seeds(found)})
    return points
