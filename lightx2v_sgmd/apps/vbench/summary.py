"""Scores, aggregates, missing videos and the set-up: the content of ``metrics.json``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, Final

from lightx2v_sgmd.apps.vbench.results import Score
from lightx2v_sgmd.apps.vbench.suite import SAMPLES, Suite
from lightx2v_sgmd.measures.vbench import DIMENSIONS, aggregate

FORMAT_VERSION: Final = 1
_PASSES_OVER: Final = ("color",)
"""Dimensions whose result leaves out videos that are there: vbench scores the colour of an object
only in videos in which its detector finds the object. Their missing files are counted instead."""


def summarise(
    suite: Suite, videos: Collection[int], scores: Mapping[str, Score], setup: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of ``metrics.json``.

    A missing video is never left out in silence: it is counted, and beside the aggregates that
    VBench computes from the videos that it found stand those in which a missing video scores 0.
    Where a result does not say what it was measured on, the videos that are not there are missing.

    Args:
        suite: The prompts.
        videos: The indices of the videos that there are.
        scores: The scores of dimensions.
        setup: The setup that the scores belong to: weights, steps, versions.
    """
    dimensions: dict[str, dict[str, Any]] = {}
    there = suite.there(videos)
    for name, about in DIMENSIONS.items():
        if name not in suite.dimensions and name not in scores:
            continue
        wanted = suite.dimensions.get(name, 0)
        score = scores.get(name)
        measured = None if score is None else score.videos
        counted = measured
        if name in _PASSES_OVER or (score is not None and measured is None):
            counted = there.get(name, 0)
        missing = None if counted is None else max(0, wanted - counted)
        dimensions[name] = {
            "title": about.title,
            "part": about.part,
            "wanted": wanted,
            "measured": measured,
            "missing": missing,
            "score": None if score is None else score.value,
            "score_missing_as_zero": None
            if score is None
            else score.value * (1 - (missing or 0) / wanted if wanted else 1),
        }
    found = {n: d["score"] for n, d in dimensions.items() if d["score"] is not None}
    zero = {n: d["score_missing_as_zero"] for n, d in dimensions.items() if n in found}
    return {
        "format_version": FORMAT_VERSION,
        "vbench": {
            "dimensions": dimensions,
            "aggregate": asdict(aggregate(found)),
            "aggregate_missing_as_zero": asdict(aggregate(zero)),
            "not_measured": [name for name in DIMENSIONS if name not in found],
            "videos": {
                "wanted": suite.count,
                "there": len(videos),
                "missing": suite.count - len(videos),
            },
            "setup": {
                "prompts": str(suite.file),
                "prompts_sha256": suite.sha256,
                "number_of_prompts": len(suite.prompts),
                "videos_of_a_prompt": SAMPLES,
                "prompt_augmentation": None
                if suite.augmented is None
                else {"file": str(suite.augmented[0]), "sha256": suite.augmented[1]},
                **setup,
            },
        },
    }


def is_incomplete(results: Mapping[str, Any]) -> bool:
    """True if a video or a dimension is missing."""
    found = results["vbench"]
    missing = any(about["missing"] for about in found["dimensions"].values())
    return bool(found["videos"]["missing"] or found["not_measured"] or missing)
