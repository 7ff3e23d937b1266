"""The base of every distillation method: options, the roles it trains, pure losses over tensors.

A method never sees ranks, engines or optimizers. A new one is one module with one frozen dataclass
that inherits from ``Method``. Its fields are the options of a job's ``method`` section. It is named
in ``methods.REGISTRY``, or announced by an entry point of the group ``lightx2v_sgmd.methods``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as options
from torch import Tensor

from lightx2v_sgmd import objectives
from lightx2v_sgmd.flow import velocity_from
from lightx2v_sgmd.interpolants import FLOW, Interpolant

# B batch, C channels, T latent frames, H, W

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""The pydantic configuration of a job: unknown keys and non-finite numbers are errors."""

STUDENT, TEACHER, FAKE_SCORE = "student", "teacher", "fake_score"
DISCRIMINATOR, PIXEL_DISCRIMINATOR = "discriminator", "pixel_discriminator"


def expert_role(role: str, expert: int) -> str:
    """The role of a role's network for one of the model's experts: ``student``, ``student_2``.

    Args:
        role: The role.
        expert: The expert's index in ``Model.experts``; the first one's role has no number.
    """
    return role if expert == 0 else f"{role}_{expert + 1}"


def role_of(expert: str) -> str:
    """The role that an expert's role belongs to: ``student`` for ``student_2``."""
    role, _, number = expert.rpartition("_")
    return role if number.isdecimal() else expert


Losses = dict[str, Tensor]
"""Loss terms ``[B]`` by name, already weighted: what is minimised is their sum."""

Discriminate = Callable[[Tensor, Tensor], Tensor]
"""``(x [kB, C, T, H, W], time [kB]) -> logits [kB, L]``, the batch's texts repeated k times.

``L`` counts the outputs of all heads: places in a video, for each head.
"""


@dataclass(frozen=True)
class Sample:
    """The tensors of one micro-batch: ``[B, C, T, H, W]`` float32, and ``time`` ``[B]``.

    Which of them carry gradient depends on the update: in the generator's, ``x0`` and ``x_t`` do,
    ``x_fake`` if the method asks for it (``through_fake_score``), ``x_real`` likewise
    (``through_teacher``). In the fake score's, ``predicted_fake`` and ``x_fake`` alone do. In the
    discriminator's, only what ``discriminate`` returns does.

    Attributes:
        x0: The student's rollout.
        noise: Fresh noise of the score step.
        time: Score times.
        x_t: ``interpolant.add_noise(x0, noise, time)``.
        predicted_fake: The fake score's prediction at ``x_t``, of the interpolant's kind.
        x_fake: The fake score's data prediction.
        x_real: The guided teacher's data prediction at ``x_t``; None in a fake-score update on a
            rollout of its own, which needs no teacher.
        discriminate: The discriminator, for methods that have that role.
        real: Latents of real videos, for methods that read them.
        interpolant: The path from data to noise, and what networks predict on it.
        phase_end: The time of the sample from which ``x_t`` was noised; above 0 in the first phase
            of Phased DMD, where ``x0`` is that sample in a fake-score update, and the data
            prediction that goes with it in the generator's.
    """

    x0: Tensor
    noise: Tensor
    time: Tensor
    x_t: Tensor
    predicted_fake: Tensor
    x_fake: Tensor
    x_real: Tensor | None = None
    discriminate: Discriminate | None = None
    real: Tensor | None = None
    interpolant: Interpolant = FLOW
    phase_end: float = 0.0

    @property
    def sigma(self) -> Tensor:
        """The factor of the noise in ``x_t``, ``[B]``; in flow matching the time itself."""
        return self.interpolant.sigma(self.time)

    @property
    def fisher_weight(self) -> Tensor:
        """The paper's c(t) = alpha^2 / sigma^4, ``[B]``."""
        return self.interpolant.fisher_weight(self.time)

    @property
    def target(self) -> Tensor:
        """The prediction that would be right for ``x0`` and ``noise``; carries no gradient."""
        if self.phase_end:
            return velocity_from(self.x0.detach(), self.noise, self.phase_end, self.time)
        return self.interpolant.target(self.x0.detach(), self.noise, self.time)


@dataclass(frozen=True)
class PairSample:
    """The tensors of one micro-batch of adversarial pre-training, ``[B, C, T, H, W]`` float32.

    Attributes:
        x0: The student's data prediction; carries gradient in the generator's update only.
        real: The pair's data.
        noise: Fresh noise for the latent discriminator.
        time: Times ``[B]`` of the latent discriminator.
        discriminate: The latent discriminator.
        discriminate_pixels: The pixel discriminator, ``x0 [kB, ...] -> logits [kB, L]``, or None.
        interpolant: The path from data to noise.
    """

    x0: Tensor
    real: Tensor
    noise: Tensor
    time: Tensor
    discriminate: Discriminate
    discriminate_pixels: Callable[[Tensor], Tensor] | None = None
    interpolant: Interpolant = FLOW


@options(frozen=True, config=STRICT)
class Discriminator:
    """Heads on the blocks of the frozen teacher, which tell real latents from the student's."""

    # One head on every so many blocks of the teacher (arXiv 2507.18569, App. B.2: 3).
    head_every: Annotated[int, Field(ge=1)] = 3
    # Channels inside a head, a multiple of 32.
    head_channels: Annotated[int, Field(ge=32, multiple_of=32)] = 64
    # Learning rate of the heads (App. B.5).
    lr: Annotated[float, Field(gt=0)] = 5e-6


@dataclass(frozen=True)
class PixelDiscriminator:
    """Heads on a frozen vision encoder that sees decoded frames.

    Attributes:
        vision_encoder: Folder of a transformers vision encoder.
        frames: Frames of each video that it sees.
    """

    vision_encoder: str
    frames: int


@dataclass(frozen=True)
class Stage:
    """A part of a run in which one method trains.

    Attributes:
        method: The method.
        iterations: Number of iterations; None is all that are left.
        lr_factor: Factor of the student's learning rate.
        option: The option of the job's method that ``iterations`` is from.
    """

    method: Method
    iterations: int | None = None
    lr_factor: float = 1.0
    option: str = ""


class Method:
    """A distillation method.

    Everything but the generator's losses has a default. A subclass is a frozen pydantic dataclass,
    and overrides a default by a property, or by a field if it is an option of the job.
    """

    @property
    def name(self) -> str:
        """The name in a job; every method has a field for it."""
        raise NotImplementedError(f"{type(self).__name__} has no field 'name'")

    @property
    def discriminator(self) -> Discriminator | None:
        """The discriminator that is trained, if there is one."""
        return None

    @property
    def pixel_discriminator(self) -> PixelDiscriminator | None:
        """The discriminator of decoded frames, if there is one."""
        return None

    @property
    def fake_score_updates(self) -> int:
        """Fake-score updates for each generator update; 0 trains no fake score."""
        return 1

    @property
    def fresh_rollouts(self) -> bool:
        """True if each fake-score update draws a rollout of its own.

        Otherwise its one update uses the x_t of the generator's.
        """
        return self.fake_score_updates > 1

    @property
    def high_noise_iterations(self) -> int:
        """Iterations of a first phase that trains the high-noise expert alone; 0 is no phases."""
        return 0

    @property
    def whole_rollouts(self) -> bool:
        """True if the fake score's own rollouts run all steps.

        Otherwise they end at a random step, like the student's.
        """
        return False

    @property
    def through_fake_score(self) -> bool:
        """True if the generator's gradient flows through the fake score at x_t."""
        return True

    @property
    def through_teacher(self) -> bool:
        """True if the generator's gradient flows through the teacher at x_t."""
        return False

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """The range of each iteration's guidance; None takes ``teacher.guidance_scale``."""
        return None

    @property
    def reads_latents(self) -> Literal["videos", "pairs"] | None:
        """The contents of ``data.latents`` that it needs: encoded videos, ODE pairs, or None."""
        return None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The methods that train one after the other; most methods are one stage."""
        return (Stage(self),)

    @property
    def roles(self) -> tuple[str, ...]:
        """The networks that are trained, the student first."""
        stages = [stage.method for stage in self.stages]
        trained = {
            STUDENT: True,
            FAKE_SCORE: any(method.fake_score_updates for method in stages),
            DISCRIMINATOR: any(method.discriminator for method in stages),
            PIXEL_DISCRIMINATOR: any(method.pixel_discriminator for method in stages),
        }
        return tuple(role for role, is_trained in trained.items() if is_trained)

    def generator_losses(self, sample: Sample) -> Losses:
        """The student's loss terms; they may depend on it through ``x0`` and ``x_t``."""
        raise NotImplementedError(f"{self.name} has no generator_losses")

    def fake_score_losses(self, sample: Sample) -> Losses:
        """The fake score's loss terms: flow or score matching on the student's data.

        It is the error of the network's own prediction, which is the error of x0 (Eq. 4 of arXiv
        2605.30116) over sigma^2, or times alpha^2 / sigma^2 for ``epsilon``: another weighting of
        the score times with the same solution.

        ``x0`` and ``x_t`` carry no gradient.
        """
        return {"fake": objectives.prediction_matching(sample.predicted_fake, sample.target)}

    def discriminator_losses(self, sample: Sample) -> Losses:
        """The heads' loss terms; only the logits carry gradient."""
        raise NotImplementedError(f"{self.name} has no discriminator_losses")


class PairMethod(Method):
    """A method that trains the student on a teacher's ODE pairs, without any score."""

    @property
    def fake_score_updates(self) -> int:
        """None: there is no fake score."""
        return 0

    @property
    def fresh_rollouts(self) -> bool:
        """True: no update shares a rollout."""
        return True

    @property
    def through_fake_score(self) -> bool:
        """False: there is no fake score."""
        return False

    @property
    def reads_latents(self) -> Literal["pairs"]:
        """A teacher's ODE pairs."""
        return "pairs"

    def pair_generator_losses(self, sample: PairSample) -> Losses:
        """The student's loss terms; they depend on it through ``x0``."""
        raise NotImplementedError(f"{self.name} has no pair_generator_losses")

    def pair_discriminator_losses(self, sample: PairSample) -> Losses:
        """The latent heads' loss terms; only the logits carry gradient."""
        raise NotImplementedError(f"{self.name} has no pair_discriminator_losses")

    def pair_pixel_losses(self, sample: PairSample) -> Losses:
        """The pixel heads' loss terms, if there are such heads."""
        raise NotImplementedError(f"{self.name} has no pair_pixel_losses")


def stage_at(method: Method, iteration: int) -> Stage:
    """The stage that an iteration belongs to; iterations count from 0."""
    first = 0
    for stage in method.stages:
        if stage.iterations is None or iteration < first + stage.iterations:
            return stage
        first += stage.iterations
    return method.stages[-1]


def pair_iterations(method: Method, iterations: int) -> int:
    """The number of a run's first iterations that train on ODE pairs."""
    count = 0
    for stage in method.stages:
        if not isinstance(stage.method, PairMethod):
            break
        count = iterations if stage.iterations is None else count + stage.iterations
    return min(count, iterations)
