"""Measurements of a set of videos, stored raw, so that tables need no videos.

Legend: N videos, F frames, H height, W width, D features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Sized
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.apps.sprites.measure import measure
from lightx2v_sgmd.apps.sprites.motion_verdicts import MotionVerdict, motion_verdict
from lightx2v_sgmd.apps.sprites.motions import MotionCaption
from lightx2v_sgmd.apps.sprites.verdicts import Verdict, verdict_of
from lightx2v_sgmd.measures import optical_flow
from lightx2v_sgmd.measures.diversity import pairwise_distance
from lightx2v_sgmd.outputs import write_text
from lightx2v_sgmd.untrusted.json_text import MEASURED, own_record, read_record

Videos = NDArray[np.uint8]
Captions = Sequence[world.Caption] | Sequence[MotionCaption]
"""Captions of one of the sprite worlds."""


@dataclass(frozen=True)
class Measured:
    """A set of videos, measured.

    Attributes:
        nfe: Network evaluations for one video.
        features: ``[N][D]``, what the Frechet distance compares.
        flow: ``[N]``, mean absolute optical flow in pixels per frame; empty for images.
        dynamic: ``[N]``, whether each is dynamic by VBench's rule; empty for images.
        verdicts: ``[N]`` against the captions of the sprite world; None for any others.
        distances: For each prompt that has several videos, their mean pairwise distance.
        seconds: The time of sampling and measuring.
        motions: ``[N]`` against the captions of the world of motions; None for any others.
    """

    nfe: int
    features: list[list[float]]
    flow: list[float]
    dynamic: list[bool]
    verdicts: list[Verdict] | None
    distances: list[float]
    seconds: float
    motions: list[MotionVerdict] | None = None

    @property
    def right(self) -> list[bool] | None:
        """True for each video that is right on its caption; None if captions cannot be checked."""
        verdicts = self.motions if self.verdicts is None else self.verdicts
        return None if verdicts is None else [v.all_attributes for v in verdicts]

    def first(self, count: int) -> Measured:
        """The same of the first ``count`` videos, without distances."""
        verdicts = None if self.verdicts is None else self.verdicts[:count]
        motions = None if self.motions is None else self.motions[:count]
        return Measured(
            self.nfe,
            self.features[:count],
            self.flow[:count],
            self.dynamic[:count],
            verdicts,
            [],
            self.seconds,
            motions,
        )


def measure_videos(
    videos: Videos,
    captions: Captions | None,
    fps: float,
    *,
    nfe: int,
    groups: Sequence[Videos] = (),
    seconds: float = 0.0,
) -> Measured:
    """Measures videos.

    Args:
        videos: ``[N, F, H, W, 3]``.
        captions: One for each, if they are a sprite world's.
        fps: Frames per second.
        nfe: Network evaluations for one video.
        groups: Videos of one prompt each, ``[K, F, H, W, 3]``.
        seconds: The time of sampling.
    """
    if videos.shape[1] == 1:
        features = [image_statistics(video) for video in videos]
        distances = [pairwise_distance(group) for group in groups]
        return Measured(nfe, features, [], [], None, distances, seconds)
    fields = [optical_flow.flow(video) for video in videos]
    verdicts: list[Verdict] | None = None
    motions: list[MotionVerdict] | None = None
    if captions is None:
        features = [statistics(video, field) for video, field in zip(videos, fields, strict=True)]
    else:
        measured = [measure(video) for video in videos]
        features = [[float(value) for value in m.features] for m in measured]
        pairs = list(zip(measured, captions, strict=True))
        if any(isinstance(caption, MotionCaption) for caption in captions):
            motions = [motion_verdict(m, c) for m, c in pairs if isinstance(c, MotionCaption)]
        else:
            verdicts = [verdict_of(m, c) for m, c in pairs if isinstance(c, world.Caption)]
    return Measured(
        nfe=nfe,
        features=features,
        flow=[optical_flow.mean_flow(field) for field in fields],
        dynamic=[optical_flow.is_dynamic(video, fps) for video in videos],
        verdicts=verdicts,
        distances=[pairwise_distance(group) for group in groups],
        seconds=seconds,
        motions=motions,
    )


def replace_seconds(measured: Measured, seconds: float) -> Measured:
    """The same with the time that all of it took."""
    return replace(measured, seconds=round(seconds, 2))


def statistics(video: Videos, field: optical_flow.Array) -> list[float]:
    """Simple numbers of a video of any kind, for a Frechet distance where nothing better is known.

    Mean and spread of each colour, sharpness, change from frame to frame, and of the flow its mean
    length, the length of its fastest part, its spread over time and its mean direction.

    Args:
        video: ``[F, H, W, 3]``.
        field: The optical flow.
    """
    values = video.astype(np.float32) / 255
    top = optical_flow.top_flow(field)
    lengths = np.hypot(field[..., 0], field[..., 1]).mean((1, 2))
    numbers = [
        *image_statistics(video),
        np.abs(np.diff(values, axis=0)).mean(),
        lengths.mean(),
        top.mean(),
        lengths.std(),
        *field.mean((0, 1, 2)),
    ]
    return [float(number) for number in numbers]


def image_statistics(video: Videos) -> list[float]:
    """The numbers of ``statistics`` that an image has too: of colours and of sharpness.

    Args:
        video: ``[F, H, W, 3]``.
    """
    values = video.astype(np.float32) / 255
    edges = [np.abs(np.diff(values, axis=axis)).mean() for axis in (1, 2)]
    return [float(x) for x in (*values.mean((0, 1, 2)), *values.std((0, 1, 2)), *edges)]


def save(measured: Measured, path: Path) -> None:
    """Writes measurements as JSON, complete or not at all."""
    tree = asdict(measured)
    write_text(path, json.dumps({"format_version": 1, **tree}))


def load(path: Path) -> Measured:
    """Reads what ``save`` wrote.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    with own_record(path, "remove it, and run the same command again to measure anew"):
        tree: dict[str, Any] = read_record(path, MEASURED)
        del tree["format_version"]
        verdicts = tree.pop("verdicts")
        if verdicts is not None:
            verdicts = [_verdict(item) for item in verdicts]
        motions = tree.pop("motions", None)  # version 0.1 had none
        if motions is not None:
            motions = [MotionVerdict(**item) for item in motions]
        measured = Measured(verdicts=verdicts, motions=motions, **tree)
        _check(measured)
        return measured


def _check(measured: Measured) -> None:
    """Raises if values are not numbers, or are not of as many videos as there are.

    Raises:
        TypeError, ValueError: they are not.
    """
    count = len(measured.features)
    if not count or np.asarray(measured.features, dtype=np.float64).ndim != 2:
        raise ValueError("the features are not those of videos")
    images = not measured.flow and not measured.dynamic  # which have no motion
    each: list[Sized] = [] if images else [measured.flow, measured.dynamic]
    each += [found for found in (measured.verdicts, measured.motions) if found]
    if any(len(values) != count for values in each):
        raise ValueError("the measurements are of different numbers of videos")
    numbers = [*measured.flow, *measured.dynamic, *measured.distances]
    if not all(isinstance(n, int | float) for n in (*numbers, measured.nfe, measured.seconds)):
        raise TypeError("a measurement is no number")


def _verdict(tree: dict[str, Any]) -> Verdict:
    return Verdict(
        right={name: (hits, named) for name, (hits, named) in tree["right"].items()},
        clean=tree["clean"],
        all_attributes=tree["all_attributes"],
        open_values={name: tuple(values) for name, values in tree["open_values"].items()},
        speeds=tuple(tree["speeds"]),
    )
