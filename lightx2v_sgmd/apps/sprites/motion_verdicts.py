"""Reads the motion of sprite videos from their frames, and compares it with captions.

The motion is the best path of two velocities through an object's centroids, with the knee at the
middle frame, as the world of ``motions`` draws it. A video without exactly one such object, or
whose velocities fit no manner, has the manner ``OTHER``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.apps.sprites import motions, world
from lightx2v_sgmd.apps.sprites.measure import MAX_WOBBLE, Measurement, Track, measure
from lightx2v_sgmd.apps.sprites.verdicts import STRAY_AREA

OTHER: Final = "other"
"""The manner of a video that shows none of the world's."""
REST: Final = 0.33
"""Pixels per frame: a slower half rests (late starts creep at 0.16, slow objects begin at 0.5)."""
ATTRIBUTES: Final = ("colour", "shape", "direction", "manner")
"""The attributes that captions name; ``direction`` is the set of a motion's directions."""


@dataclass(frozen=True)
class SeenMotion:
    """A motion as measured.

    Attributes:
        manner: One of the world's, or ``OTHER``.
        directions: The directions of the halves that move, sorted, each once.
        first, second: Velocity in pixels per frame up to the middle frame, and from it.
        wobble: Root mean square distance, in pixels, of the centroids from that path.
    """

    manner: str
    directions: tuple[str, ...]
    first: tuple[float, float]
    second: tuple[float, float]
    wobble: float

    @property
    def pixels_per_frame(self) -> float:
        """Mean speed over the video."""
        return float(np.hypot(*self.first) + np.hypot(*self.second)) / 2


NOTHING_SEEN: Final = SeenMotion(OTHER, (), (0.0, 0.0), (0.0, 0.0), float("inf"))


def see_motion(track: Track) -> SeenMotion:
    """Fits two velocities to an object's centroids and names the manner."""
    seen = np.isfinite(track.centroids[:, 0])
    if seen.sum() < world.NUM_FRAMES - 1:
        return NOTHING_SEEN
    points = track.centroids[seen].astype(np.float64)
    t = np.arange(world.NUM_FRAMES, dtype=np.float64)[seen]
    middle = motions.MIDDLE
    design = np.stack([np.ones_like(t), np.minimum(t, middle), np.maximum(t - middle, 0)], 1)
    solution = np.linalg.lstsq(design, points, rcond=None)[0]
    wobble = float(np.sqrt(((design @ solution - points) ** 2).sum(1).mean()))
    first, second = ((float(v[0]), float(v[1])) for v in solution[1:])
    halves = [first, second]
    moving = [_direction(v) for v in halves if np.hypot(*v) >= REST]
    manner = _manner(halves, moving) if wobble < MAX_WOBBLE else OTHER
    return SeenMotion(manner, tuple(sorted(set(moving))), first, second, wobble)


def _direction(velocity: tuple[float, float]) -> str:
    x, y = velocity
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def _manner(halves: Sequence[tuple[float, float]], moving: list[str]) -> str:
    paces = []
    for velocity in halves:
        speed = float(np.hypot(*velocity))
        paces.append(
            "rest" if speed < REST else "slow" if speed < world.SPEED_THRESHOLD else "fast"
        )
    first, second = paces
    if first == "rest":
        return {"rest": "still", "fast": "late"}.get(second, OTHER)
    if first != second:
        return OTHER
    if len(set(moving)) == 1:
        return first
    pairs = (sorted(pair) for pair in motions.DIRECTIONS["bounce"])
    return OTHER if first == "slow" else "bounce" if sorted(moving) in pairs else "turn"


@dataclass(frozen=True)
class MotionVerdict:
    """A video against its caption.

    Attributes:
        manner: The manner that the video shows, named or not.
        right: For each attribute that the caption names, True if the video shows it.
        clean: One object and nothing else, whole, with a motion of the world.
        motion_is_open: True if the caption leaves the motion open.
        pixels_per_frame: Mean speed.
    """

    manner: str
    right: dict[str, bool]
    clean: bool
    motion_is_open: bool
    pixels_per_frame: float

    @property
    def all_attributes(self) -> bool:
        """True if the video is clean and right on everything named."""
        return self.clean and all(self.right.values())


def motion_verdict(measurement: Measurement, caption: motions.MotionCaption) -> MotionVerdict:
    """Compares a video with its caption; the largest object is the caption's."""
    track = measurement.tracks[0] if measurement.tracks else None
    seen = NOTHING_SEEN if track is None else see_motion(track)
    right = {}
    if caption.colour is not None:
        right["colour"] = track is not None and track.colour == caption.colour
    if caption.shape is not None:
        right["shape"] = track is not None and track.shape == caption.shape
    if caption.motion is not None:
        right["manner"] = seen.manner == caption.motion.manner
        if caption.motion.directions:
            right["direction"] = seen.directions == tuple(sorted(caption.motion.directions))
    clean = (
        len(measurement.tracks) == 1
        and measurement.stray <= STRAY_AREA
        and measurement.tracks[0].whole
        and seen.manner != OTHER
    )
    return MotionVerdict(seen.manner, right, clean, caption.motion is None, seen.pixels_per_frame)


@dataclass(frozen=True)
class MotionScores:
    """Shares over a set of videos.

    Attributes:
        named: For each attribute, the share of videos that show what their caption names.
        all_attributes: Share of videos that are clean and right on everything named.
        clean: Share of clean videos.
        pixels_per_frame: Mean measured speed.
        open_manners: Share of each manner, ``OTHER`` included, where the motion was left open.
        open_videos: Number of those videos.
        videos: Number of all videos.
    """

    named: dict[str, float]
    all_attributes: float
    clean: float
    pixels_per_frame: float
    open_manners: dict[str, float]
    open_videos: int
    videos: int

    @property
    def rare(self) -> float:
        """Share of the rare, fast manners where the motion was left open."""
        return sum(self.open_manners[manner] for manner in motions.RARE)


def score_motions(verdicts: Sequence[MotionVerdict]) -> MotionScores:
    """Sums verdicts up; an attribute that no caption named has the share 0."""
    if not verdicts:
        raise ValueError("there are no verdicts to sum up")
    named = {}
    for name in ATTRIBUTES:
        hits = [v.right[name] for v in verdicts if name in v.right]
        named[name] = float(np.mean(hits)) if hits else 0.0
    shown = [v.manner for v in verdicts if v.motion_is_open]
    return MotionScores(
        named=named,
        all_attributes=float(np.mean([v.all_attributes for v in verdicts])),
        clean=float(np.mean([v.clean for v in verdicts])),
        pixels_per_frame=float(np.mean([v.pixels_per_frame for v in verdicts])),
        open_manners={
            name: shown.count(name) / max(1, len(shown)) for name in (*motions.MANNERS, OTHER)
        },
        open_videos=len(shown),
        videos=len(verdicts),
    )


def motion_verdicts(
    videos: Sequence[NDArray[np.uint8]], captions: Sequence[motions.MotionCaption]
) -> list[MotionVerdict]:
    """The verdicts on videos ``[N, F, H, W, 3]``, which it measures."""
    return [motion_verdict(measure(v), c) for v, c in zip(videos, captions, strict=True)]
