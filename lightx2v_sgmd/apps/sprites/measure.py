"""Measures sprite videos: which objects are there, what they look like and how they move.

Everything is read from the decoded frames; nothing of the model or of the random draw is used.
Pixels are explained as a mix of background and one palette colour, each colour's pixels are one
object, its shape is the template that fits best, and its motion is the line through its
centroids. ``verdicts`` says what makes a video right.

Legend: F frames, H height, W width, K palette colours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.measures.frechet import gaussian_distance
from lightx2v_sgmd.system.optional_packages import required

cv2 = required("cv2")

Array = NDArray[np.float32]

MIN_AREA: Final = 10.0
"""Pixels of coverage from which a colour counts as present in a frame (the least sprite has 50)."""
MAX_WOBBLE: Final = 0.5
"""Largest root mean square distance, in pixels, of the centroids from a straight line."""
MAX_AREA_CHANGE: Final = 0.35
"""Largest deviation of an object's area in any frame from its median."""
SAME_SHAPE: Final = 0.8
"""Least share of frames that agree on an object's shape."""


@dataclass(frozen=True)
class Track:
    """One object as measured.

    Attributes:
        colour, shape, direction, speed: The named attributes.
        velocity: Pixels per frame, ``(x, y)``.
        pixels_per_frame: Length of the motion.
        area: Median coverage in pixels.
        start: First centroid in pixels, ``(x, y)``.
        whole: True if the object has one size and shape, in every frame, in one piece.
        steady: Whole, and on a straight line.
        centroids: ``[F, 2]`` in pixels, NaN in frames without the object.
    """

    colour: str
    shape: str
    direction: str
    speed: str
    velocity: tuple[float, float]
    pixels_per_frame: float
    area: float
    start: tuple[float, float]
    whole: bool
    steady: bool
    centroids: Array = field(repr=False, compare=False)


@dataclass(frozen=True)
class Measurement:
    """The measured content of a video.

    Attributes:
        tracks: The objects, largest first.
        stray: Largest coverage in any frame, in pixels, that belongs to no track.
        features: ``[D]`` numbers for the Frechet distance, see ``FEATURES``.
    """

    tracks: tuple[Track, ...]
    stray: float
    features: Array = field(repr=False)


FEATURES: Final[dict[str, float]] = {
    "area": 8.0,
    "area_change": 2.0,
    "stray": 5.0,
    "red": 0.32,
    "green": 0.27,
    "blue": 0.33,
    "contrast": 0.1,
    "start_x": 6.0,
    "start_y": 6.0,
    "end_x": 6.0,
    "end_y": 6.0,
    "spread": 0.8,
    "speed": 0.38,
    "wobble": 0.2,
    "fit_circle": 0.1,
    "fit_square": 0.1,
    "fit_triangle": 0.11,
    "change": 0.005,
}
"""The features of the Frechet distance, and the unit of each.

The units are the standard deviations over videos of the world; what is constant there (no stray
pixels, no wobble) takes the size of a defect that one sees, and counts for three of them at most,
so that a few broken videos do not decide the distance.
"""


def explain_pixels(video: Array) -> tuple[NDArray[np.int64], Array, Array]:
    """Explains each pixel as ``background + coverage * (colour - background)``.

    Args:
        video: ``[F, H, W, 3]`` in [0, 1].

    Returns:
        The best palette index, its coverage in [0, 1], and the distance that remains in RGB, all
        ``[F, H, W]``.
    """
    axes = world.PALETTE - world.BACKGROUND
    offset = video[..., None, :] - world.BACKGROUND
    coverage = np.clip((offset * axes).sum(-1) / (axes**2).sum(-1), 0, 1)
    rest = np.linalg.norm(offset - coverage[..., None] * axes, axis=-1)
    best = rest.argmin(-1)
    pick = best[..., None]
    return (
        best,
        np.take_along_axis(coverage, pick, -1)[..., 0],
        np.take_along_axis(rest, pick, -1)[..., 0],
    )


def measure(video: Array | NDArray[np.uint8]) -> Measurement:
    """Measures one video.

    Args:
        video: ``[F, H, W, 3]``, float in [0, 1] or uint8.
    """
    frames = video.astype(np.float32) / 255 if video.dtype == np.uint8 else video
    frames = np.asarray(frames, dtype=np.float32)
    best, coverage, rest = explain_pixels(frames)
    one_hot = best[..., None] == np.arange(len(world.PALETTE))
    masses: Array = np.where(one_hot & (coverage > 0.25)[..., None], coverage[..., None], 0)
    area = masses.sum((1, 2))  # [F, K]
    is_object = (area > MIN_AREA).mean(0) > 0.5
    unexplained = (rest > 0.25).sum((1, 2))
    stray = float((np.where(is_object, 0, area).sum(1) + unexplained).max())
    order = sorted(np.flatnonzero(is_object), key=lambda k: -float(np.median(area[:, k])))
    tracks = tuple(_track(masses[..., k], list(world.COLOURS)[k]) for k in order)
    return Measurement(tracks, stray, _features(frames, masses, stray, tracks))


def _centroids(mask: Array) -> Array:
    """``[F, H, W]`` coverage to ``[F, 2]`` centroids (x, y) in pixels; NaN where nothing is."""
    grid = np.arange(mask.shape[1], dtype=np.float32) + 0.5
    total = mask.sum((1, 2))
    safe = np.maximum(total, 1e-6)
    xy = np.stack([(mask.sum(1) * grid).sum(1), (mask.sum(2) * grid).sum(1)], 1) / safe[:, None]
    return np.where(total[:, None] > MIN_AREA, xy, np.nan).astype(np.float32)


def _line(points: Array) -> tuple[Array, Array, float]:
    """Start, velocity per frame and root mean square distance of the best straight motion."""
    t = np.arange(len(points), dtype=np.float32)
    seen = np.isfinite(points[:, 0])
    if seen.sum() < 3:
        return np.zeros(2, np.float32), np.zeros(2, np.float32), np.inf
    design = np.stack([np.ones(int(seen.sum()), np.float32), t[seen]], 1)
    solution = np.linalg.lstsq(design, points[seen], rcond=None)[0]
    wobble = float(np.sqrt(((design @ solution - points[seen]) ** 2).sum(1).mean()))
    return solution[0], solution[1], wobble


def _shape_distances(mask: Array, centre: Array) -> Array:
    """``[F, 3]``: square distance per covered pixel to each shape's template, frame by frame."""
    grid = np.arange(mask.shape[1], dtype=np.float32) + 0.5
    area = mask.sum((1, 2))
    radius = np.sqrt(np.maximum(area, 1e-6) / np.pi)[:, None, None].astype(np.float32)
    x = grid[None, None, :] - centre[:, 0, None, None]
    y = grid[None, :, None] - centre[:, 1, None, None]
    distances = [
        ((world.shape_mask(shape, x, y, radius) - mask) ** 2).sum((1, 2)) / np.maximum(area, 1e-6)
        for shape in world.SHAPES
    ]
    return np.stack(distances, 1)


def _track(mask: Array, colour: str) -> Track:
    area = mask.sum((1, 2))
    points = _centroids(mask)
    start, velocity, wobble = _line(points)
    present = np.isfinite(points[:, 0])
    shapes = _shape_distances(mask[present], points[present]).argmin(1)
    shape = int(np.bincount(shapes, minlength=len(world.SHAPES)).argmax())
    median = float(np.median(area[present]))
    in_one_piece = all(_largest_piece(frame) > 0.85 * frame.sum() for frame in mask[present])
    pixels_per_frame = float(np.hypot(*velocity))
    whole = (
        bool(present.all())
        and float(np.abs(area / median - 1).max()) < MAX_AREA_CHANGE
        and float((shapes == shape).mean()) >= SAME_SHAPE
        and in_one_piece
    )
    horizontal = abs(velocity[0]) > abs(velocity[1])
    direction = (
        ("right" if velocity[0] > 0 else "left")
        if horizontal
        else ("down" if velocity[1] > 0 else "up")
    )
    return Track(
        colour=colour,
        shape=world.SHAPES[shape],
        direction=direction,
        speed="quickly" if pixels_per_frame > world.SPEED_THRESHOLD else "slowly",
        velocity=(float(velocity[0]), float(velocity[1])),
        pixels_per_frame=pixels_per_frame,
        area=median,
        start=(float(start[0]), float(start[1])),
        whole=whole,
        steady=whole and wobble < MAX_WOBBLE,
        centroids=points,
    )


def _largest_piece(frame: Array) -> float:
    count, labels = cv2.connectedComponents((frame > 0.25).astype(np.uint8), connectivity=8)
    if count < 2:
        return 0.0
    return max(float(frame[labels == label].sum()) for label in range(1, count))


def _features(frames: Array, masses: Array, stray: float, tracks: tuple[Track, ...]) -> Array:
    mask = masses.sum(-1)
    area = mask.sum((1, 2))
    weight = mask[..., None] / max(float(mask.sum()), 1e-6)
    colour = (frames * weight).sum((0, 1, 2))
    points = _centroids(mask)
    seen = np.flatnonzero(np.isfinite(points[:, 0]))
    middle = np.full(2, world.SIZE / 2, np.float32)
    first, last = (points[seen[0]], points[seen[-1]]) if len(seen) else (middle, middle)
    grid = np.arange(mask.shape[1], dtype=np.float32) + 0.5
    flat = mask.sum(0) / max(float(mask.sum()), 1e-6)
    mean_x, mean_y = (flat.sum(0) * grid).sum(), (flat.sum(1) * grid).sum()
    variance = (flat.sum(0) * (grid - mean_x) ** 2).sum() + (
        flat.sum(1) * (grid - mean_y) ** 2
    ).sum()
    fits = np.zeros(3, np.float32)
    wobble = 0.0
    for k, track in enumerate(world.COLOURS):
        if any(t.colour == track for t in tracks):
            one = masses[..., k]
            where = _centroids(one)
            present = np.isfinite(where[:, 0])
            fits += _shape_distances(one[present], where[present]).mean(0) / len(tracks)
            wobble += min(_line(where)[2], 3 * FEATURES["wobble"]) / len(tracks)
    values = [
        float(area.mean()),
        min(float(area.std()), 3 * FEATURES["area_change"]),
        min(stray, 3 * FEATURES["stray"]),
        *colour,
        float(np.quantile(mask, 0.98)),
        *first,
        *last,
        float(np.sqrt(variance)),
        float(np.mean([t.pixels_per_frame for t in tracks])) if tracks else 0.0,
        wobble,
        *fits,
        float(np.abs(np.diff(frames, axis=0)).mean()),
    ]
    return np.array(values, dtype=np.float32)


def frechet_distance(first: Array, second: Array) -> float:
    """Frechet distance between two sets of features, each in its unit.

    Args:
        first: ``[N, D]`` as ``measure`` gives them.
        second: ``[M, D]``.
    """
    return gaussian_distance(first, second, np.array(list(FEATURES.values())))
