"""The scores and features that an evaluation asks for, of all sides.

A network is loaded once, and only if a video has to be looked at. Its module is imported only if
it is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from lightx2v_sgmd.apps.evaluation.making import device_and_dtype
from lightx2v_sgmd.apps.evaluation.measuring import SideVideos, Values
from lightx2v_sgmd.apps.evaluation.options import EvaluateOptions
from lightx2v_sgmd.apps.evaluation.scores.videoalign import (
    SCORES,
    VideoAlign,
    check_python,
    videoalign_scores,
)
from lightx2v_sgmd.families.base import Model

Sides = Mapping[str, SideVideos]


@dataclass(frozen=True)
class Asked:
    """The scores that an evaluation asks for.

    Attributes:
        metrics: The metrics.
        options: The options of the metrics.
        teacher: The teacher in whose features the Frechet distance is taken.
    """

    metrics: tuple[str, ...]
    options: EvaluateOptions
    teacher: Model | None


def check_scores(options: EvaluateOptions, fvd_frames: Sequence[int] = ()) -> None:
    """Refuses files of networks that cannot be used, as far as that is seen without loading them.

    Args:
        options: The options of the metrics.
        fvd_frames: The numbers of frames of videos that will be made for FVD.

    Raises:
        UserError: says which file it is, and what to name.
    """
    if options.clip is not None:
        from lightx2v_sgmd.apps.evaluation.scores.clip import check_clip

        check_clip(options.clip)
    if options.videoalign is not None:
        check_python(options.videoalign_python)
    if options.i3d is not None:
        from lightx2v_sgmd.apps.evaluation.scores.fvd import check_i3d

        check_i3d(options.i3d, fvd_frames)


def clip_of(sides: Sides, asked: Asked) -> dict[str, list[Values]]:
    """The CLIP score of each video, by side; empty if it is not asked for."""
    folder = asked.options.clip
    if "clip" not in asked.metrics or folder is None:
        return {}
    from lightx2v_sgmd.apps.evaluation.scores.clip import Clip, clip_scores

    device, _ = device_and_dtype(asked.options.device)
    load = functools.cache(lambda: Clip(folder, device))
    return {
        side: [{"clip": score} for score in clip_scores(load, folder, videos)]
        for side, videos in sides.items()
    }


def videoalign_of(sides: Sides, asked: Asked) -> dict[str, list[Values]]:
    """VideoAlign's scores of each video, by side; empty if they are not asked for."""
    options = asked.options
    folder = options.videoalign
    if folder is None or not set(SCORES) & set(asked.metrics):
        return {}
    with ExitStack() as stack:

        @functools.cache
        def load() -> VideoAlign:
            network = VideoAlign(folder, options.videoalign_python, options.device)
            return stack.enter_context(network)

        return {
            side: [dict(scores) for scores in videoalign_scores(load, folder, videos)]
            for side, videos in sides.items()
        }


def features_of(sides: Sides, asked: Asked) -> dict[str, Any]:
    """The features of each side's videos in the teacher; empty if they are not asked for."""
    model = asked.teacher
    if "frechet" not in asked.metrics or model is None:
        return {}
    from lightx2v_sgmd.apps.evaluation.scores.features import TeacherFeatures, teacher_features

    device, dtype = device_and_dtype(asked.options.device)
    load = functools.cache(lambda: TeacherFeatures(model, device, dtype))
    return {side: teacher_features(load, model, videos) for side, videos in sides.items()}


def i3d_of(sides: Sides, asked: Asked) -> dict[str, Any]:
    """The I3D features of each side's videos; empty if they are not asked for."""
    i3d = asked.options.i3d
    if "fvd" not in asked.metrics or i3d is None:
        return {}
    from lightx2v_sgmd.apps.evaluation.scores.fvd import fvd_features, load_i3d

    device, _ = device_and_dtype(asked.options.device)
    load = functools.cache(lambda: load_i3d(i3d, device))
    return {side: fvd_features(load, i3d, device, videos) for side, videos in sides.items()}
