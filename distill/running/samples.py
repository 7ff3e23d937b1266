"""Sample videos of a run: makes and measures them, beside the teacher's of the same prompts.

The teacher's videos are made once for a run. Measures are those of ``lightx2v_sgmd.measures``, of
the decoded frames; the Frechet distance is that of the latents in the teacher's middle block, with
the negative prompt.

Legend: C channels, T latent frames, h, w latent height and width.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from distill.data import Batches
from distill.observed import Stopped
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import joined
from lightx2v_sgmd.families.experts import boundary_of, expert_at
from lightx2v_sgmd.files.images import fitted, read_image
from lightx2v_sgmd.files.video import small_gif, write_frames
from lightx2v_sgmd.flow import guide
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs import WrittenFiles
from lightx2v_sgmd.parallel import STUDENT, TEACHER, Strategy, expert_role
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import read_record

MEASURES: Final = ("optflow", "brightness", "saturation", "contrast", "flicker")
"""The measures of ``lightx2v_sgmd.measures.video`` that a sample step records."""
TEACHER_FOLDER: Final = "samples/teacher"
_REFERENCE: Final = f"{TEACHER_FOLDER}/measured.json"
_FORMAT_VERSION: Final = 1


@dataclass(frozen=True)
class TeacherSamples:
    """The teacher's samples, measured.

    Attributes:
        steps: Steps of the teacher's sampler.
        measures: The mean of each of ``MEASURES``.
        features: The features of each video, ``[N][D]``.
    """

    steps: int
    measures: dict[str, float]
    features: list[list[float]]


@dataclass(frozen=True)
class Sampled:
    """The outcome of a sample step.

    Attributes:
        measures: The mean over the videos of each of ``MEASURES``, and ``frechet``; empty if
            nothing was measured.
        teacher: The same of the teacher's videos, without ``frechet``.
        seconds: Duration of the step, the teacher's videos included.
        gifs: Small copies of the videos, on the first rank alone.
        files: The videos, or the images of a model that makes images.
    """

    measures: dict[str, float]
    teacher: dict[str, float]
    seconds: float
    gifs: list[bytes] = field(default_factory=list)
    files: tuple[Path, ...] = ()

    def line(self) -> dict[str, Any]:
        """The values for the iteration's line of ``metrics.jsonl``."""
        found: dict[str, Any] = {"sampling_seconds": round(self.seconds, 3)}
        if self.measures:
            found["samples"] = self.measures
        if self.teacher:
            found["teacher_samples"] = self.teacher
        return found


class SampleVideos:
    """Makes the sample videos of a run.

    Args:
        job: The job.
        model: The teacher.
        strategy: The networks, without listeners.
        batches: Prompts and noise of the samples, which are the same throughout a run.
        stop: Once it returns True on any rank, what remains is left out.
        measured: Measure the videos; the same on all ranks.
        quiet: Show nothing.
    """

    def __init__(
        self,
        job: Job,
        model: Model,
        strategy: Strategy,
        batches: Batches,
        stop: Callable[[], bool] = lambda: False,
        measured: bool = True,
        quiet: bool = True,
    ) -> None:
        self.job, self.model, self.strategy, self.batches = job, model, strategy, batches
        self.stop, self.quiet = stop, quiet
        self.count = min(job.train.sample_videos, len(batches.rows))
        self.measured = measured and job.video.frames > 1
        self._written = WrittenFiles(job.output.dir)
        self._reference: TeacherSamples | None = None

    @torch.no_grad()
    def make(self, step: int) -> Sampled | None:
        """Writes the videos of the student, or of its EMA weights, and measures them.

        All ranks call it; the first one writes. It returns None if it was stopped.
        """
        began = time.monotonic()
        gifs: list[bytes] = []
        try:
            latents = self._student_latents()
            folder = f"samples/step_{step:06d}"
            values = self._write(latents, folder, gifs)
            teacher = self._teacher() if self.measured else None
            if teacher is not None and self.count > 1:
                features = self._features(latents)
                values |= self.strategy.ranks.once(partial(_frechet, features, teacher))
        except Stopped:
            return None
        means = {} if teacher is None else teacher.measures
        suffix = self.model.size_rules.suffix
        files = [self._written.folder / f"{folder}/{i:02d}{suffix}" for i in range(self.count)]
        there = tuple(file for file in files if file.is_file())
        return Sampled(values, means, time.monotonic() - began, gifs, there)

    def _student_latents(self) -> list[Tensor]:
        noise, fresh = self.batches.sample_noise(self.count), self.batches.sample_fresh_noise
        conditioning, _ = self.batches.conditioning(range(self.count))
        latents = []
        with self.strategy.averaged_student():
            self._check_stop()
            for i in range(self.count):
                one = conditioning.rows(slice(i, i + 1))
                student = partial(self.strategy.predict, STUDENT, conditioning=one)
                made = rollout(
                    student,
                    noise[i : i + 1],
                    self.job.steps,
                    on_step=self._check_stop,
                    interpolant=self.strategy.interpolant,
                    fresh_noise=fresh(i),
                )
                latents.append(made)
        return latents

    def _teacher(self) -> TeacherSamples | None:
        """The teacher's samples: those of this run's folder, or made now."""
        steps = self.job.train.teacher_sample_steps
        if steps and self._reference is None:
            ranks = self.strategy.ranks
            self._reference = ranks.once(self._read_reference)
            if self._reference is None:
                latents = self._teacher_latents(steps)
                measures = self._write(latents, TEACHER_FOLDER, [])
                found = TeacherSamples(steps, measures, self._features(latents))
                ranks.once(partial(self._save_reference, found))
                self._reference = found
        return self._reference

    def _teacher_latents(self, steps: int) -> list[Tensor]:
        from lightx2v_sgmd.sampling.teacher_steps import teacher_solver
        from lightx2v_sgmd.sampling.unipc import UniPC

        solver = teacher_solver(self.model, steps=steps)
        boundary, teacher = boundary_of(self.model.experts), self.job.teacher
        unguided = all(teacher.guidance_of(i) == 1 for i in range(len(self.model.experts)))
        passes = steps * self.count * (1 if unguided else 2)
        note(
            f"sampling the teacher once for comparison, {self.count} videos in {passes} of its "
            "passes; train.teacher_sample_steps: 0 leaves it out",
            self.quiet,
        )
        noise, latents = self.batches.sample_noise(self.count), []
        conditioning, negative = self.batches.conditioning(range(self.count))

        def predict(i: int, x_t: Tensor, time: Tensor) -> Tensor:
            self._check_stop()
            one = slice(i, i + 1)
            if unguided:
                return self.strategy.predict(TEACHER, x_t, time, conditioning.rows(one))
            both = joined([conditioning.rows(one), negative.rows(one)])
            twice = self.strategy.predict(TEACHER, torch.cat([x_t, x_t]), time.repeat(2), both)
            cond, uncond = twice.float().chunk(2)
            return guide(cond, uncond, teacher.guidance_of(expert_at(boundary, time)))

        for i in range(self.count):
            start = noise[i : i + 1]
            if isinstance(solver, UniPC):
                latents.append(solver.run(partial(predict, i), start))
            else:
                path = self.strategy.interpolant
                latents.append(rollout(partial(predict, i), start, solver, interpolant=path))
        return latents

    def _features(self, latents: Sequence[Tensor]) -> list[list[float]]:
        """The features of each video; a collective."""
        from lightx2v_sgmd.measures.network_features import features_expert, middle_features

        _, negative = self.batches.conditioning(range(self.count))
        model = self.model
        network = self.strategy.networks[expert_role(TEACHER, features_expert(model))]

        def run(i: int, x_t: Tensor, time: Tensor) -> Tensor:
            self._check_stop()
            return self.strategy.predict(TEACHER, x_t, time, negative.rows(slice(i, i + 1)))

        # All of the pass, since sharded networks count on it.
        found = [
            middle_features(model, network, partial(run, i), x0, whole_pass=True)
            for i, x0 in enumerate(latents)
        ]
        return [[float(value) for value in row[0]] for row in found]

    def _check_stop(self, step: int = 0, x_t: Tensor | None = None) -> None:
        if self.strategy.ranks.any(self.stop()):
            raise Stopped

    def _write(self, latents: Sequence[Tensor], folder: str, gifs: list[bytes]) -> dict[str, float]:
        """Decodes, writes and measures videos on the first rank; returns the means on all.

        Raises:
            Stopped: it was asked to stop.
        """
        means = self.strategy.ranks.once(partial(self._write_files, latents, folder, gifs))
        if means is None:
            raise Stopped
        return means

    def _write_files(
        self, latents: Sequence[Tensor], folder: str, gifs: list[bytes]
    ) -> dict[str, float] | None:
        vae = self.model.load_vae(device=self.strategy.ranks.device)
        measured: list[dict[str, float]] = []
        suffix = self.model.size_rules.suffix
        for index, latent in enumerate(latents):
            if self.stop():
                return None
            frames = self.model.decode_latents(vae, latent)[0].cpu().numpy()
            try:
                name = f"{folder}/{index:02d}{suffix}"
                path, publish = self._written.folder / name, self._written.publish(name)
                write_frames(frames, path, self.model.fps, publish)
                self._write_image(index, f"{folder}/{index:02d}_input.png")
            except (UserError, OSError) as error:  # training goes on
                note(f"a sample video was not written: {error}")
            gifs.append(small_gif(frames, self.model.fps))
            if self.measured:
                from lightx2v_sgmd.measures.video import measure_video

                measured.append(measure_video(frames, self.model.fps))
        if not measured:
            return {}
        return {key: float(np.mean([value[key] for value in measured])) for key in MEASURES}

    def _write_image(self, index: int, name: str) -> None:
        """Writes the image that a video starts from, if it does, at the video's size."""
        image = self.batches.images[index] if self.batches.images else None
        if image is None:
            return
        height, width = self.job.video.height, self.job.video.width
        with self._written.appearing(name) as path:
            fitted(read_image(image), height, width).resize((width, height)).save(path, "PNG")

    def _read_reference(self) -> TeacherSamples | None:
        """The reference that an earlier part of the run left, if it is of this job."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            saved = read_record(self._written.folder / _REFERENCE)
            if saved.pop("format_version") != _FORMAT_VERSION:
                return None
            found = TeacherSamples(**saved)
            same = found.steps == self.job.train.teacher_sample_steps
            if same and len(found.features) == self.count:
                return found
        return None

    def _save_reference(self, reference: TeacherSamples) -> None:
        content = {"format_version": _FORMAT_VERSION, **asdict(reference)}
        try:
            self._written.write_text(_REFERENCE, json.dumps(content))
        except (UserError, OSError) as error:  # it is made again when the run is resumed
            note(f"the teacher's measures were not written: {error}")


def _frechet(features: list[list[float]], teacher: TeacherSamples) -> dict[str, float]:
    """The distance of the student's samples from the teacher's."""
    from lightx2v_sgmd.measures.frechet import gaussian_distance

    ours, theirs = (np.array(rows, np.float64) for rows in (features, teacher.features))
    return {"frechet": gaussian_distance(ours, theirs)}
