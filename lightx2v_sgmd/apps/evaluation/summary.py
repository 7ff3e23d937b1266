"""Turns measurements of videos into the content of ``metrics.json``.

Videos are in the order of the seeds, and for each seed in the order of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.apps.evaluation.options import METRICS
from lightx2v_sgmd.measures.bootstrap import Interval, mean_interval
from lightx2v_sgmd.measures.frechet import gaussian_distance
from lightx2v_sgmd.measures.motion import motion_intervals, motion_shares

FORMAT_VERSION: Final = 1
_FLOOR_SPLITS: Final = 10


@dataclass(frozen=True)
class Side:
    """The measurements of one side.

    Attributes:
        about: Facts of the side, for ``metrics.json``.
        files: Each video's path, as the report says it.
        values: Each video's measurements.
        diversity: Each prompt's mean distance between its videos; None if not asked for.
        features: ``[N, D]`` in the teacher's network; None if not asked for.
        i3d: ``[N, 400]``, the features of FVD; None if not asked for.
    """

    about: dict[str, Any]
    files: list[str]
    values: list[dict[str, Any]]
    diversity: list[float] | None = None
    features: NDArray[np.float64] | None = None
    i3d: NDArray[np.float64] | None = None


def summarise(
    sides: dict[str, Side], prompts: Sequence[str], seeds: Sequence[int], metrics: Sequence[str]
) -> dict[str, Any]:
    """The content of ``metrics.json``.

    Args:
        sides: ``weights``, and ``against`` if there is a reference.
        prompts: The prompts.
        seeds: The seed of each video.
        metrics: The metrics to compute, names of ``METRICS``.
    """
    count = len(prompts)
    result: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "prompts": count,
        "seeds": len(seeds) // count,
        "metrics": {name: METRICS[name].meaning for name in metrics},
        "sides": {
            name: {**side.about, "measures": side_measures(side, count, metrics)}
            for name, side in sides.items()
        },
    }
    if "against" in sides:
        ours, theirs = sides["weights"], sides["against"]
        result["differences"] = differences(ours, theirs, count, metrics)
        result |= set_metrics(ours, theirs, count, metrics)
        result["cautions"] = cautions(ours, theirs)
    scores = prompt_scores(sides, count, metrics)
    result["ranking"] = {
        "by": "distance from the reference" if "against" in sides else "OptFlow",
        "scores": scores,
    }
    result["videos"] = [
        {
            "prompt": prompts[index % count],
            "seed": seed,
            **{
                name: {"file": side.files[index], **side.values[index]}
                for name, side in sides.items()
            },
        }
        for index, seed in enumerate(seeds)
    ]
    return result


def side_measures(side: Side, count: int, metrics: Sequence[str]) -> dict[str, Any]:
    """The mean of each measure of one side, with its interval."""
    found = {
        name: asdict(mean_interval(by_prompt(values_of(side, METRICS[name].key), count)))
        for name in metrics
        if METRICS[name].key
    }
    if side.diversity is not None:
        found["diversity"] = asdict(mean_interval([[value] for value in side.diversity]))
    return found


def differences(ours: Side, theirs: Side, count: int, metrics: Sequence[str]) -> dict[str, Any]:
    """The mean of the paired differences, ours less the reference's, with its interval.

    Pairs have the same prompt and the same seed. ``relative`` is the difference over the
    reference's mean; None where that is zero.
    """
    pairs: dict[str, list[list[float]]] = {}
    for name in metrics:
        if key := METRICS[name].key:
            first, second = values_of(ours, key), values_of(theirs, key)
            pairs[name] = by_prompt(first - second, count)
    if ours.diversity is not None and theirs.diversity is not None:
        pairs["diversity"] = [
            [a - b] for a, b in zip(ours.diversity, theirs.diversity, strict=True)
        ]
    result = {}
    for name, groups in pairs.items():
        difference = mean_interval(groups)
        if name == "diversity":
            base = float(np.mean(theirs.diversity or [0.0]))
        else:
            base = float(values_of(theirs, METRICS[name].key).mean())
        relative = difference.mean / base if base else None
        result[name] = {**asdict(difference), "relative": relative, "clear": is_clear(difference)}
    return result


def is_clear(difference: Interval) -> bool | None:
    """True if a difference's interval leaves out zero; None without an interval."""
    if difference.low is None or difference.high is None:
        return None
    return difference.low > 0 or difference.high < 0


def set_metrics(ours: Side, theirs: Side, count: int, metrics: Sequence[str]) -> dict[str, Any]:
    """The metrics of whole sets: motion's distribution and the Frechet distances."""
    result: dict[str, Any] = {}
    if "motion" in metrics:
        flows, reference = values_of(ours, "optflow"), values_of(theirs, "optflow")
        intervals = motion_intervals(flows, reference, count)
        result["motion"] = {**asdict(motion_shares(flows, reference)), "intervals": intervals}
    for name, first, second in (
        ("frechet", ours.features, theirs.features),
        ("fvd", ours.i3d, theirs.i3d),
    ):
        if first is not None and second is not None:
            result[name] = {
                "distance": gaussian_distance(first, second),
                "floor": floor(second),
                "videos": [len(first), len(second)],
                "features": int(first.shape[1]),
            }
    return result


def floor(features: NDArray[np.float64], seed: int = 0) -> float | None:
    """The distance of two random halves of a set, mean of 10 splits: what chance alone gives.

    Halves have half as many videos, so this is above what two whole sets would give. None with
    fewer than 4 videos.
    """
    if len(features) < 4:
        return None
    rng = np.random.default_rng(seed)
    half = len(features) // 2
    distances = []
    for _ in range(_FLOOR_SPLITS):
        order = rng.permutation(len(features))
        distances.append(
            gaussian_distance(features[order[:half]], features[order[half : 2 * half]])
        )
    return float(np.mean(distances))


def prompt_scores(sides: dict[str, Side], count: int, metrics: Sequence[str]) -> list[float]:
    """A number for each prompt, by which the worst and the best are found.

    With a reference, it is the root mean square over measures of the difference from the
    reference's video, in units of the measure's standard deviation over the reference's videos,
    mean over seeds: 0 is equal. Without one it is the OptFlow.
    """
    ours = sides["weights"]
    theirs = sides.get("against")
    if theirs is None:
        return [float(np.mean(group)) for group in by_prompt(values_of(ours, "optflow"), count)]
    keys = [METRICS[name].key for name in metrics if METRICS[name].key]
    squares = []
    for key in keys:
        first, second = values_of(ours, key), values_of(theirs, key)
        if spread := float(second.std()):
            squares.append(((first - second) / spread) ** 2)
    if not squares:
        return [0.0] * count
    distances = np.sqrt(np.mean(squares, axis=0))
    return [float(np.mean(group)) for group in by_prompt(distances, count)]


def cautions(ours: Side, theirs: Side) -> list[str]:
    """The reasons why numbers of the two sides cannot be compared as they stand."""
    found = []
    for key, what in (
        ("fps", "frame rates, and OptFlow, change and flicker count per frame"),
        ("height", "heights, and OptFlow counts pixels and sharpness depends on them"),
        ("width", "widths, and OptFlow counts pixels and sharpness depends on them"),
        ("num_frames", "numbers of frames"),
    ):
        first, second = ({value[key] for value in side.values} for side in (ours, theirs))
        if first != second:
            found.append(f"the two sides have different {what}")
    return found


def values_of(side: Side, key: str) -> NDArray[np.float64]:
    """One measure of all videos."""
    return np.array([value[key] for value in side.values], np.float64)


def by_prompt(values: NDArray[np.float64], count: int) -> list[list[float]]:
    """The values of each prompt's videos."""
    return [[float(value) for value in values[prompt::count]] for prompt in range(count)]
