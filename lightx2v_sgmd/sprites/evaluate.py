"""Scores samplers on captions of the sprite world: the teacher, its undistilled steps, a student.

Legend: N videos, F frames, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightx2v_sgmd.flow import guide
from lightx2v_sgmd.models import wan
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.sprites import world
from lightx2v_sgmd.sprites.measure import (
    Scores,
    Verdict,
    frechet_distance,
    judge,
    measure,
    score,
)

Videos = NDArray[np.uint8]
Sampler = Callable[[Sequence[str], Sequence[int]], Videos]
"""Prompts and one seed for each to videos ``[N, F, H, W, 3]``."""

TEACHER_STEPS = 50


def is_held_out(caption: world.Caption) -> bool:
    """Whether a caption belongs to the third that distillation never sees (by its text's hash)."""
    return hashlib.blake2b(caption.text().encode()).digest()[0] % 3 == 0


def held_out_captions(count: int, seed: int = 12_345) -> list[world.Caption]:
    """Captions of the world, each leaving other attributes open, that training never sees."""
    return list(islice((c for c in _captions(seed) if is_held_out(c)), count))


def training_captions(count: int, seed: int = 54_321) -> list[str]:
    """Prompts to distil on: draws of the same law, none of them a held-out caption."""
    return list(islice((c.text() for c in _captions(seed) if not is_held_out(c)), count))


def _captions(seed: int) -> Iterator[world.Caption]:
    rng = np.random.default_rng(seed)
    while True:
        yield world.sample_caption(rng)


def noise_for(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The noise ``[1, C, T, h, w]`` of one video, the same wherever it is made."""
    return torch.randn(1, *shape, generator=torch.Generator("cpu").manual_seed(seed))


class TeacherSampler:
    """Samples the teacher: many steps with guidance, or few without.

    Args:
        model: The teacher; the sprite world's sizes are assumed.
        schedule: The steps.
        guidance_scale: In the form of Ho and Salimans; 1 runs no unconditional pass.
        negative_prompt: What guidance moves away from.
        batch: Videos that run together.
        on_batch: Called with the number of videos done after each batch.
    """

    def __init__(
        self,
        model: wan.WanModel,
        schedule: Schedule,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        batch: int = 32,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self.schedule = schedule
        self.guidance_scale = guidance_scale
        self.negative_prompt = negative_prompt
        self.batch = batch
        self.on_batch = on_batch
        self.shape = model.latent_shape(world.SIZE, world.SIZE, world.NUM_FRAMES)
        self.transformer = model.load_transformer().eval().requires_grad_(False)
        wan.fold_text_padding(self.transformer)
        self.vae = model.load_vae()
        self.text_encoder = model.load_text_encoder()

    @property
    def nfe(self) -> int:
        """Network evaluations for one video."""
        return len(self.schedule) * (1 if self.guidance_scale == 1 else 2)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Videos:
        """Samples one video per prompt."""
        videos = []
        for start in range(0, len(prompts), self.batch):
            chosen = slice(start, start + self.batch)
            noise = torch.cat([noise_for(seed, self.shape) for seed in seeds[chosen]])
            velocity = self._velocity(prompts[chosen])
            latents = rollout(velocity, noise, self.schedule)
            videos.append(wan.decode_latents(self.vae, latents).numpy())
            if self.on_batch is not None:
                self.on_batch(len(noise))
        return np.concatenate(videos)

    def _velocity(
        self, prompts: Sequence[str]
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        rows = self.text_encoder.encode(prompts)
        if self.guidance_scale == 1:
            text = wan.pad_text(rows)
            return lambda x_t, sigma: wan.velocity(self.transformer, x_t, sigma, text)
        negative = self.text_encoder.encode([self.negative_prompt])
        both = wan.pad_text(rows + negative * len(rows))

        def guided(x_t: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            twice = wan.velocity(
                self.transformer, torch.cat([x_t, x_t]), torch.cat([sigma, sigma]), both
            )
            cond, uncond = twice.chunk(2)
            return guide(cond, uncond, self.guidance_scale)

        return guided


def teacher_schedule(shift: float = 3.0, steps: int = TEACHER_STEPS) -> Schedule:
    """The teacher's own sampling steps: evenly spaced, then shifted."""
    return Schedule(tuple(1000 * (steps - i) / steps for i in range(steps)), shift)


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
    verdicts = [judge(m, caption) for m, caption in zip(measured, captions, strict=True)]
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
