"""The data of an iteration: prompts, and everything random, as pure functions of the seed.

Each random number has a generator of its own, seeded by its purpose and by its sample. So a
batch does not depend on how many processes share it, and a resumed run needs no generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from distill.updates import first_batch
from lightx2v_sgmd.families.conditioning import Conditioning, Embedding
from lightx2v_sgmd.families.experts import Expert, boundary_of, expert_at
from lightx2v_sgmd.families.sources.model_folder import shipped_prompts
from lightx2v_sgmd.families.text_rows import text_conditioning
from lightx2v_sgmd.files.images import check_image
from lightx2v_sgmd.files.latents import LatentFolder
from lightx2v_sgmd.files.prompts import read_images, read_prompts
from lightx2v_sgmd.flow import cubic_sigmas, sample_sigmas_between
from lightx2v_sgmd.interpolants import FLOW, Interpolant
from lightx2v_sgmd.job.schema import LATENTS, Job
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.rollout import FreshNoise

# B batch of this rank, C channels, T latent frames, h, w latent height and width


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A CPU generator for one purpose, and for one index of it."""
    text = "/".join([str(seed), purpose, *map(str, index)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


def load_prompts(job: Job) -> list[str]:
    """The job's prompts, each once, in the order of the file.

    A prompt with two images counts twice. The prompts of a shipped model keep their duplicates, and
    a folder of latents has one prompt for each of its latents.

    Raises:
        UserError: the file has none or cannot be read.
    """
    if job.data.prompts == LATENTS:
        assert job.data.latents is not None, "a rule of the job asks for it"
        return LatentFolder(job.data.latents).prompts
    shipped = shipped_prompts(job.data.prompts)
    if shipped is not None:
        return shipped
    prompts, images = read_prompts(job.data.prompts), read_images(job.data.prompts)
    if images:
        return [prompt for prompt, _ in dict.fromkeys(zip(prompts, images, strict=True))]
    return list(dict.fromkeys(prompts))


def load_images(job: Job) -> list[Path | None]:
    """The image that each prompt of ``load_prompts`` starts from; an empty list if none has one.

    Raises:
        UserError: as ``load_prompts``.
    """
    images = read_images(job.data.prompts)
    if not images:
        return []
    pairs = dict.fromkeys(zip(read_prompts(job.data.prompts), images, strict=True))
    return [image for _, image in pairs]


def image_digests(images: Sequence[Path | None]) -> list[str]:
    """Digests that tell one list of images from another; empty where no prompt has one."""
    return ["" if image is None else check_image(image) for image in images]


def prompts_digest(prompts: Sequence[str]) -> str:
    """Tells one list of prompts from another."""
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank, on its device, float32 but the conditioning.

    Attributes:
        noise: ``[B, C, T, h, w]``, where the rollout starts.
        score_noise: ``[B, C, T, h, w]``, of x_t.
        time: ``[B]``, score times.
        conditioning: The prompts' conditioning.
        negative: The negative prompt's conditioning, for each sample.
        prompts: Indices of the prompts.
        samples: Indices in the global batch.
        fresh_noise: The noise of the rollout's later steps, by the step's index, for the solver
            ``renoise``.
        real: ``[B, C, T, h, w]``, latents of real videos, for methods that read them.
        expert: Index of the model's expert whose times the score times are.
        phase_end: The time at which the student's samples are compared with the teacher's; 0 is
            data.
    """

    noise: Tensor
    score_noise: Tensor
    time: Tensor
    conditioning: Conditioning
    negative: Conditioning
    prompts: tuple[int, ...]
    samples: tuple[int, ...]
    fresh_noise: FreshNoise
    real: Tensor | None
    expert: int
    phase_end: float = 0.0


@dataclass(frozen=True)
class PairBatch:
    """One micro-batch of ODE pairs of this rank, on its device, float32 but the conditioning.

    Attributes:
        x0: ``[B, C, T, h, w]``, what the teacher's sampler made of ``noise``.
        noise: The same.
        time: ``[B]``, where between the two the student starts.
        discriminator_noise: ``[B, C, T, h, w]``, of the discriminator's input.
        discriminator_time: ``[B]``, its times.
        frames: Indices of the frames that a pixel discriminator sees.
        conditioning: The conditioning of the pairs' prompts.
        prompts: Indices of the pairs.
        samples: Indices in the global batch.
    """

    x0: Tensor
    noise: Tensor
    time: Tensor
    discriminator_noise: Tensor
    discriminator_time: Tensor
    frames: tuple[int, ...]
    conditioning: Conditioning
    prompts: tuple[int, ...]
    samples: tuple[int, ...]


class Batches:
    """The run's micro-batches, each a pure function of its number.

    Args:
        job: Whose seed, sizes and score times count.
        rows: The prompts' embeddings.
        negative: The negative prompt's.
        latent_shape: ``(C, T, h, w)``.
        ranks: Who shares the global batch.
        latents: Latents of the prompts, one for each, for methods that read them.
        interpolant: The networks' path from data to noise, which may have a grid of times.
        batched: Makes one conditioning of several prompts' embeddings, ``Model.conditioning``.
        experts: The model's experts, if it has several.
        images: The image file that each prompt starts from; empty if none has one.
        exit_order: The exit step of each exit index, for measurements; None draws it.
    """

    def __init__(
        self,
        job: Job,
        rows: Sequence[Embedding],
        negative: Embedding,
        latent_shape: tuple[int, ...],
        ranks: Ranks,
        latents: LatentFolder | None = None,
        interpolant: Interpolant = FLOW,
        batched: Callable[[Sequence[Embedding]], Conditioning] = text_conditioning,
        experts: Sequence[Expert] = (),
        images: Sequence[Path | None] = (),
        exit_order: Callable[[int], int] | None = None,
    ) -> None:
        self.experts, self.images, self._exit_order = experts, images, exit_order
        self.interpolant, self._batched = interpolant, batched
        self.job, self.ranks, self.latents = job, ranks, latents
        self.rows, self.negative = rows, negative
        self.latent_shape = latent_shape
        self.global_batch = job.train.micro_batch * job.train.accumulation * ranks.data_size

    def exit_step(self, exit_index: int) -> int:
        """Uniform over the steps, or over those of a phase; the same for all ranks.

        See ``exit_index``.
        """
        if self._exit_order is not None:
            return self._exit_order(exit_index)
        source = generator(self.job.train.seed, "exit_step", exit_index)
        steps = self._steps_of_phase(exit_index)
        return steps[int(torch.randint(len(steps), (), generator=source))]

    def _steps_of_phase(self, batch_index: int) -> range:
        """The steps of the expert that a phase trains; all steps for a method without phases."""
        first, count = self.job.method.high_noise_iterations, len(self.job.steps)
        if not first:
            return range(count)
        in_first = batch_index < first_batch(self.job.method, first)
        return range(self._high_noise_steps) if in_first else range(self._high_noise_steps, count)

    @property
    def _high_noise_steps(self) -> int:
        """The number of steps of the first expert."""
        times = self.interpolant.nearest(self.job.steps.times[:-1])
        return [expert_at(boundary_of(self.experts), time) for time in times].count(0)

    def phase_end(self, batch_index: int) -> float:
        """The time at which the samples of a batch's phase are compared; 0 is data.

        The first phase of a method with phases ends where the second expert's first step begins.
        """
        if self._steps_of_phase(batch_index).stop == len(self.job.steps):
            return 0.0
        return float(self.job.steps.times[self._high_noise_steps])

    def exit_index(self, batch_index: int, micro: int) -> int:
        """The index in the run of a micro-batch's exit step, by ``train.exit_step_per``.

        It is the global batch's, which all its micro-batches share, or one of its own.
        """
        if self.job.train.exit_step_per == "update":
            return batch_index
        return batch_index * self.job.train.accumulation + micro

    def expert(self, batch_index: int) -> int:
        """The index of the expert that a batch trains: that of its exit step; one for all ranks."""
        times = self.interpolant.nearest(self.job.steps.times)
        return expert_at(boundary_of(self.experts), times[self.exit_step(batch_index)])

    def uniform(self, purpose: str, batch_index: int, low: float, high: float) -> float:
        """A number from a range; the same for all ranks and micro-batches."""
        source = generator(self.job.train.seed, purpose, batch_index)
        return low + (high - low) * float(torch.rand((), generator=source))

    def micro_batch(self, batch_index: int, micro: int) -> Batch:
        """This rank's slice of a global batch.

        Args:
            batch_index: Index of the global batch in the run; an iteration may use several.
            micro: Number of the slice among those that are accumulated.
        """
        train = self.job.train
        samples, prompts = self._slice(batch_index, micro)
        u = self._uniform("u", batch_index, samples)
        number = self.expert(batch_index)
        low, high = 0.0, 1.0
        if self.experts:
            low, high = self.experts[number].low, self.experts[number].high
        clamps = (train.sigma_min, train.sigma_max)
        time = sample_sigmas_between(u, train.score_shift, low, high, *clamps)
        conditioning, negative = self.conditioning(prompts)
        return Batch(
            noise=self._noise("noise", batch_index, samples),
            score_noise=self._noise("score_noise", batch_index, samples),
            time=self._time(time),
            conditioning=conditioning,
            negative=negative,
            prompts=prompts,
            samples=tuple(samples),
            fresh_noise=partial(self._fresh_noise, batch_index, samples),
            real=None if self.latents is None else self._latents("x0", prompts),
            expert=number,
            phase_end=self.phase_end(batch_index),
        )

    def pair_batch(self, batch_index: int, micro: int, frames: int) -> PairBatch:
        """This rank's slice of a global batch of ODE pairs, for adversarial pre-training.

        Args:
            batch_index: Index of the global batch in the run.
            micro: Number of the slice among those that are accumulated.
            frames: Number of frames of a video for a pixel discriminator.
        """
        train = self.job.train
        samples, prompts = self._slice(batch_index, micro)
        time = cubic_sigmas(self._uniform("u", batch_index, samples), train.sigma_min, 1.0)
        # The purpose is a seed: renaming it would change every run.
        u = self._uniform("critic_u", batch_index, samples)
        count = self.job.video.frames
        order = torch.randperm(count, generator=generator(train.seed, "frames", batch_index))
        return PairBatch(
            x0=self._latents("x0", prompts),
            noise=self._latents("noise", prompts),
            time=self._time(time),
            discriminator_noise=self._noise("score_noise", batch_index, samples),
            discriminator_time=self._time(u.clamp(train.sigma_min, train.sigma_max)),
            frames=tuple(sorted(order[:frames].tolist())),
            conditioning=self.conditioning(prompts)[0],
            prompts=prompts,
            samples=tuple(samples),
        )

    def _time(self, time: Tensor) -> Tensor:
        """Times at which networks are trained, on this rank's device."""
        return self.interpolant.nearest(time).to(self.ranks.device)

    def _slice(self, batch_index: int, micro: int) -> tuple[range, tuple[int, ...]]:
        """This rank's samples of a global batch, and the indices of their prompts."""
        size = self.job.train.micro_batch
        first = (micro * self.ranks.data_size + self.ranks.data_rank) * size
        samples = range(first, first + size)
        return samples, tuple(self._prompt(batch_index * self.global_batch + s) for s in samples)

    def _uniform(self, purpose: str, batch_index: int, samples: range) -> Tensor:
        seed = self.job.train.seed
        return torch.cat(
            [torch.rand(1, generator=generator(seed, purpose, batch_index, s)) for s in samples]
        )

    def _latents(self, name: str, prompts: Sequence[int]) -> Tensor:
        assert self.latents is not None, "the method reads no latents"
        return self.latents.read(name, prompts).to(self.ranks.device)

    def conditioning(self, prompts: Sequence[int]) -> tuple[Conditioning, Conditioning]:
        """The conditioning of prompts, and the negative prompt's for each; padded to one length."""
        rows = [self.rows[p] for p in prompts]
        images = [{n: row[n] for n in row if n not in self.negative} for row in rows]
        if any(images):  # guidance leads away from the negative prompt, not from the image
            negatives = [self.negative.with_image(image) for image in images]
            both = self._batched([*rows, *negatives]).to(self.ranks.device)
            return both.rows(slice(len(rows))), both.rows(slice(len(rows), None))
        every = self._batched([*rows, self.negative])
        every = every.to(self.ranks.device)
        return every.rows(slice(-1)), every.rows(slice(-1, None)).expanded(len(prompts))

    def sample_noise(self, count: int) -> Tensor:
        """``[count, C, T, h, w]`` for sample videos: the same all through the run."""
        return self._noise("samples", 0, range(count))

    def sample_fresh_noise(self, index: int) -> FreshNoise:
        """The noise of later steps for a sample video, ``[1, C, T, h, w]``: the same all through.

        Args:
            index: The video's, in ``sample_noise``.
        """
        return partial(self._fresh_noise, 0, range(index, index + 1), purpose="sample_steps")

    def _fresh_noise(
        self, batch_index: int, samples: range, step: int, purpose: str = "steps"
    ) -> Tensor:
        return self._noise(purpose, batch_index, samples, step)

    def _noise(self, purpose: str, batch_index: int, samples: range, *step: int) -> Tensor:
        seed = self.job.train.seed
        rows = [
            torch.randn(
                self.latent_shape, generator=generator(seed, purpose, batch_index, s, *step)
            )
            for s in samples
        ]
        return torch.stack(rows).to(self.ranks.device)

    def _prompt(self, position: int) -> int:
        """The prompt of the run's sample at ``position``; every epoch is shuffled anew."""
        epoch, place = divmod(position, len(self.rows))
        return _permutation(self.job.train.seed, epoch, len(self.rows))[place]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=generator(seed, "prompts", epoch)).tolist()
    return order
