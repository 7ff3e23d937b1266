"""Judges measured sprite videos: which of them show what their captions say, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np

from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.apps.sprites.measure import Measurement, Track

STRAY_AREA: Final = 6.0
"""Pixels of another colour, or of none, that a clean frame may have."""


@dataclass(frozen=True)
class Verdict:
    """A video against its caption.

    Attributes:
        right: Two counts for each attribute: named values that the video shows, and named values.
        clean: The captioned number of objects, nothing else, each steady.
        all_attributes: Clean and right on everything the caption names.
        open_values: The values of each attribute that objects took where the caption left it open.
        speeds: Measured pixels per frame of every captioned object that was found.
    """

    right: dict[str, tuple[int, int]]
    clean: bool
    all_attributes: bool
    open_values: dict[str, tuple[str, ...]]
    speeds: tuple[float, ...]


def verdict_of(measurement: Measurement, caption: world.Caption) -> Verdict:
    """Compares a video with its caption.

    The captioned objects are matched with the largest tracks so that most named values are right;
    a captioned object without a track is wrong on all that it names.
    """
    wanted = caption.objects
    tracks: list[Track | None] = list(measurement.tracks[: len(wanted)])
    tracks += [None] * (len(wanted) - len(tracks))
    matched = max(
        permutations(tracks),
        key=lambda order: sum(
            _agrees(track, name, value)
            for track, obj in zip(order, wanted, strict=True)
            for name, value in obj.named().items()
        ),
    )
    right = {}
    open_values: dict[str, tuple[str, ...]] = {}
    for name in world.OPTIONS:
        named = [
            _agrees(track, name, value)
            for track, obj in zip(matched, wanted, strict=True)
            if (value := getattr(obj, name)) is not None
        ]
        right[name] = (sum(named), len(named))
        open_values[name] = tuple(
            getattr(track, name)
            for track, obj in zip(matched, wanted, strict=True)
            if getattr(obj, name) is None and track is not None
        )
    clean = (
        len(measurement.tracks) == len(wanted)
        and measurement.stray <= STRAY_AREA
        and all(track.steady for track in measurement.tracks)
    )
    return Verdict(
        right=right,
        clean=clean,
        all_attributes=clean and all(hits == named for hits, named in right.values()),
        open_values=open_values,
        speeds=tuple(track.pixels_per_frame for track in matched if track is not None),
    )


def _agrees(track: Track | None, name: str, value: str) -> bool:
    return track is not None and getattr(track, name) == value


@dataclass(frozen=True)
class Scores:
    """Shares over a set of videos, each in [0, 1] but for the speed.

    Attributes:
        colour, shape, direction, speed: Share of named values that the videos show.
        all_attributes: Share of videos that are clean and right on everything named.
        clean: Share of videos with the captioned objects and nothing else, all steady.
        pixels_per_frame: Mean measured speed.
        entropy: Mean over the attributes of the entropy (in units of the uniform law's) of the
            values taken where captions leave the attribute open.
        prompts: Number of videos.
    """

    colour: float
    shape: float
    direction: float
    speed: float
    all_attributes: float
    clean: float
    pixels_per_frame: float
    entropy: float
    prompts: int


def score(verdicts: list[Verdict]) -> Scores:
    """Sums verdicts up."""
    if not verdicts:
        raise ValueError("there are no verdicts to sum up")
    shares = {}
    for name in world.OPTIONS:
        hits = sum(v.right[name][0] for v in verdicts)
        shares[name] = hits / max(1, sum(v.right[name][1] for v in verdicts))
    entropies = [
        _relative_entropy([value for v in verdicts for value in v.open_values[name]], options)
        for name, options in world.OPTIONS.items()
    ]
    speeds = [s for v in verdicts for s in v.speeds]
    return Scores(
        **shares,
        all_attributes=float(np.mean([v.all_attributes for v in verdicts])),
        clean=float(np.mean([v.clean for v in verdicts])),
        pixels_per_frame=float(np.mean(speeds)) if speeds else 0.0,
        entropy=float(np.mean(entropies)),
        prompts=len(verdicts),
    )


def _relative_entropy(values: list[str], options: tuple[str, ...]) -> float:
    """Entropy of ``values`` over the uniform law's, in [0, 1]; the world's own law is uniform."""
    if not values:
        return 0.0
    p = np.array([values.count(option) for option in options], dtype=np.float64) / len(values)
    p = p[p > 0]
    return float(-(p * np.log(p)).sum() / np.log(len(options)))
