"""Shows the unfinished videos of a worker, in colours that finished ones have taught.

T latent frames, h, w latent height and width, C channels.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from infer.serve.jobs import VideoJob
from infer.serve.results import Results
from infer.serve.work.students import WorkingStudent

if TYPE_CHECKING:
    from torch import Tensor

    from infer.serve.work.latent_colours import FrameMeans, LinearDecoder
    from lightx2v_sgmd.interpolants import Interpolant
    from lightx2v_sgmd.rollout import FreshNoise
    from lightx2v_sgmd.schedule import Schedule


PREVIEW_S: Final = 0.5
"""The least time between two previews: a page asks every second, and each costs processor time."""
LEARN_FROM: Final = 8
"""Videos of each weights whose colours are learned: more would cost time and change little."""


class Previews:
    """Shows unfinished videos after each step, in colours that finished ones have taught.

    Args:
        results: The folder that previews are written to.
        every_s: The least seconds between the previews of two steps.
    """

    def __init__(self, results: Results, every_s: float = PREVIEW_S) -> None:
        self._results, self._every_s = results, every_s
        self._shown_at = -math.inf
        self._decoders: dict[str, LinearDecoder] = {}
        self._states: Tensor | None = None
        self._schedule: Schedule | None = None
        self._interpolant: Interpolant | None = None
        self._fresh_noise: FreshNoise | None = None
        self._drawn = 0

    def begin(self, student: WorkingStudent, jobs: list[VideoJob]) -> None:
        """Takes the noise that a batch starts from, and the student's steps."""
        import torch

        from lightx2v_sgmd.sampling.sampler import fresh_noise_for

        shape = student.latent_shape(*jobs[0].size)
        seeds = [job.seed for job in jobs]
        self._states = torch.stack([student.noise(seed, shape) for seed in seeds])
        self._schedule = student.schedule
        self._interpolant = student.model.interpolant
        self._fresh_noise, self._drawn = fresh_noise_for(student.model, seeds, shape), 0

    def step(self, jobs: list[VideoJob], step: int, x_t: Tensor) -> None:
        """Writes the previews of a batch after a step, from the states before and after it."""
        from infer.serve.work.latent_colours import animation, data_prediction, renoised_prediction

        schedule, interpolant = self._schedule, self._interpolant
        if schedule is None or interpolant is None:
            return
        times = schedule.times[step : step + 2]
        after, before = x_t.detach().float().cpu(), self._states
        self._states = after
        now = time.monotonic()
        if before is None or now - self._shown_at < self._every_s:
            return
        if not self._decoder(jobs[0]).videos:
            return
        self._shown_at = now
        if schedule.solver == "renoise":
            noise = self._noise_of(step)
            predicted = renoised_prediction(after, noise, interpolant, times[1:])
        else:
            predicted = data_prediction(before, after, interpolant, times)
        decoder = self._decoder(jobs[0])
        for job, x0 in zip(jobs, predicted, strict=True):
            pictures = decoder.decode(x0)
            if pictures is not None:
                self._results.show(job.id, animation(pictures, job.fps))

    def _noise_of(self, step: int) -> Tensor:
        """The noise that a step added; steps that were not shown are drawn too, in their order."""
        assert self._fresh_noise is not None and self._drawn <= step, "steps come in their order"
        while True:
            noise = self._fresh_noise(self._drawn)
            self._drawn += 1
            if self._drawn > step:
                return noise

    def learns(self, job: VideoJob) -> bool:
        """True if the map of a job's weights still learns."""
        return self._decoder(job).videos < LEARN_FROM

    def means(self, latents: Tensor) -> FrameMeans:
        """Takes the frames of a video whose latents are ``[C, T, h, w]``."""
        from infer.serve.work.latent_colours import FrameMeans

        return FrameMeans(latents.shape[1:])

    def learn(self, job: VideoJob, latents: Tensor, means: FrameMeans) -> None:
        """Learns from a video that is finished."""
        colours = means.colours
        if colours is not None:
            self._decoder(job).learn(latents, colours)

    def _decoder(self, job: VideoJob) -> LinearDecoder:
        """The map of a job's weights: others may have latents of another kind."""
        from infer.serve.work.latent_colours import LinearDecoder

        return self._decoders.setdefault(job.model, LinearDecoder())
