"""VBench's aggregate: from the scores of its 16 dimensions to Quality, Semantic and Total.

Every score is from 0 to 1. It is brought to the range between the least and the largest value that
VBench's authors found for the dimension, then averaged with weights; Total is four fifths Quality
and one fifth Semantic. The numbers are those of VBench's public code (Vchitect/VBench,
``scripts/constant.py`` and ``scripts/cal_final_score.py``; Apache-2.0), paper arXiv 2311.17982.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Dimension:
    """A dimension of VBench.

    Attributes:
        title: The name that readers see.
        part: The score that it counts towards.
        low: The score that becomes 0.
        high: The score that becomes 1.
        weight: The weight in the mean of its part.
    """

    title: str
    part: Literal["quality", "semantic"]
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


DIMENSIONS: Final = {
    "subject_consistency": Dimension("Subject consistency", "quality", 0.1462),
    "background_consistency": Dimension("Background consistency", "quality", 0.2615),
    "temporal_flickering": Dimension("Temporal flickering", "quality", 0.6293),
    "motion_smoothness": Dimension("Motion smoothness", "quality", 0.706, 0.9975),
    "dynamic_degree": Dimension("Dynamic degree", "quality", weight=0.5),
    "aesthetic_quality": Dimension("Aesthetic quality", "quality"),
    "imaging_quality": Dimension("Imaging quality", "quality"),
    "object_class": Dimension("Object class", "semantic"),
    "multiple_objects": Dimension("Multiple objects", "semantic"),
    "human_action": Dimension("Human action", "semantic"),
    "color": Dimension("Color", "semantic"),
    "spatial_relationship": Dimension("Spatial relationship", "semantic"),
    "scene": Dimension("Scene", "semantic", 0.0, 0.8222),
    "appearance_style": Dimension("Appearance style", "semantic", 0.0009, 0.2855),
    "temporal_style": Dimension("Temporal style", "semantic", 0.0, 0.364),
    "overall_consistency": Dimension("Overall consistency", "semantic", 0.0, 0.364),
}
"""The dimensions, by VBench's names, in the order of its tables."""
QUALITY_WEIGHT: Final = 4.0
SEMANTIC_WEIGHT: Final = 1.0


@dataclass(frozen=True)
class Aggregate:
    """The aggregate of a part's dimensions; None if a dimension of it was not measured.

    VBench's own script takes 0 for a missing dimension, which looks like a score.
    """

    quality: float | None
    semantic: float | None
    total: float | None


def aggregate(scores: Mapping[str, float]) -> Aggregate:
    """Quality, Semantic and Total, from 0 to 1.

    Args:
        scores: The scores of dimensions, from 0 to 1, by VBench's names.

    Raises:
        ValueError: a name is no dimension.
    """
    if unknown := sorted(set(scores) - set(DIMENSIONS)):
        raise ValueError(f"{unknown[0]} is not a dimension of VBench")
    quality, semantic = (_part(scores, part) for part in ("quality", "semantic"))
    total = None
    if quality is not None and semantic is not None:
        weighted = QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic
        total = weighted / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return Aggregate(quality, semantic, total)


def _part(scores: Mapping[str, float], part: str) -> float | None:
    """The weighted mean of a part's normalised scores."""
    found = {name: about for name, about in DIMENSIONS.items() if about.part == part}
    if not set(found) <= set(scores):
        return None
    weighted = sum(
        about.weight * (scores[name] - about.low) / (about.high - about.low)
        for name, about in found.items()
    )
    return weighted / sum(about.weight for about in found.values())
