"""Scores samplers on captions of the sprite world: the teacher, its undistilled steps, a student.

Legend: N videos, F frames, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.apps.sprites import motions, world
from lightx2v_sgmd.apps.sprites.measure import frechet_distance, measure
from lightx2v_sgmd.apps.sprites.verdicts import Scores, Verdict, score, verdict_of
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.sampling.sampler import Videos, VideoSampler
from lightx2v_sgmd.sampling.teacher_steps import TEACHER_STEPS, Solver, teacher_schedule

__all__ = [
    "TEACHER_STEPS",
    "Row",
    "TeacherSampler",
    "Videos",
    "evaluate",
    "gap_closed",
    "held_out_captions",
    "held_out_motion_captions",
    "summarise",
    "teacher_schedule",
    "training_captions",
    "training_motion_captions",
]

Sampler = Callable[[Sequence[str], Sequence[int]], Videos]
"""Prompts and one seed for each to videos ``[N, F, H, W, 3]``."""


OPEN_MOTIONS: Final = 0.5
"""Share of the captions of motions, held out or not, that leave the motion open."""


def is_held_out(caption: world.Caption | motions.MotionCaption) -> bool:
    """True if a caption is of the third that distillation never sees (by its text's hash)."""
    return hashlib.blake2b(caption.text().encode()).digest()[0] % 3 == 0


def held_out_captions(count: int, seed: int = 12_345) -> list[world.Caption]:
    """Captions of the world, each leaving other attributes open, that training never sees."""
    return list(islice((c for c in _captions(seed) if is_held_out(c)), count))


def training_captions(count: int, seed: int = 54_321) -> list[str]:
    """Prompts to distil on: draws of the same law, none of them a held-out caption."""
    return list(islice((c.text() for c in _captions(seed) if not is_held_out(c)), count))


def held_out_motion_captions(count: int, seed: int = 12_345) -> list[motions.MotionCaption]:
    """Captions of the world of motions that training never sees; half leave the motion open."""
    return list(islice((c for c in _motion_captions(seed) if is_held_out(c)), count))


def training_motion_captions(count: int, seed: int = 54_321) -> list[str]:
    """Prompts of the world of motions to distil on, of the same law, none of them held out."""
    return list(islice((c.text() for c in _motion_captions(seed) if not is_held_out(c)), count))


def _motion_captions(seed: int) -> Iterator[motions.MotionCaption]:
    rng = np.random.default_rng(seed)
    while True:
        open_motion = bool(rng.random() < OPEN_MOTIONS)
        yield motions.sample_motion_caption(rng, open_motion=open_motion)


def _captions(seed: int) -> Iterator[world.Caption]:
    rng = np.random.default_rng(seed)
    while True:
        yield world.sample_caption(rng)


class TeacherSampler(VideoSampler):
    """Samples a model at the sprite world's size; see ``VideoSampler``."""

    def __init__(
        self,
        model: Model,
        schedule: Solver,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        batch: int = 32,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        size = (world.SIZE, world.SIZE, world.NUM_FRAMES)
        super().__init__(
            model, schedule, size, guidance_scale, negative_prompt, batch=batch, on_batch=on_batch
        )


@dataclass(frozen=True)
class Row:
    """One sampler's videos, measured.

    Attributes:
        nfe: Network evaluations for one video.
        videos: ``[N, F, H, W, 3]`` uint8.
        verdicts: One for each video.
        features: ``[N, D]``.
    """

    nfe: int
    videos: Videos
    verdicts: list[Verdict]
    features: NDArray[np.float32]

    @property
    def scores(self) -> Scores:
        """The shares over all videos."""
        return score(self.verdicts)


def evaluate(
    sampler: Sampler, nfe: int, captions: Sequence[world.Caption], seeds: Sequence[int]
) -> Row:
    """Samples one video for each caption and measures it."""
    videos = sampler([caption.text() for caption in captions], seeds)
    measured = [measure(video) for video in videos]
    verdicts = [verdict_of(m, caption) for m, caption in zip(measured, captions, strict=True)]
    return Row(nfe, videos, verdicts, np.stack([m.features for m in measured]))


def summarise(row: Row, teacher: Row) -> dict[str, Any]:
    """One object of ``metrics.json``; ``motion`` and ``frechet`` are relative to the teacher."""
    scores = row.scores
    return {
        "nfe": row.nfe,
        "colour": scores.colour,
        "shape": scores.shape,
        "direction": scores.direction,
        "speed": scores.speed,
        "all_attributes": scores.all_attributes,
        "clean": scores.clean,
        "motion": scores.pixels_per_frame / max(teacher.scores.pixels_per_frame, 1e-6),
        "frechet": frechet_distance(row.features, teacher.features),
        "coverage": scores.entropy,
        "prompts": scores.prompts,
    }


def gap_closed(metrics: dict[str, Any]) -> float:
    """Share of the gap in ``all_attributes`` between undistilled and teacher that is closed."""
    teacher, undistilled, student = (
        metrics[name]["all_attributes"] for name in ("teacher", "undistilled", "student")
    )
    return float((student - undistilled) / max(teacher - undistilled, 1e-6))
