"""What a distillation method is: its options, the roles it trains, and pure losses over tensors.

A method never sees ranks, engines or optimizers. A new one is one module with one frozen dataclass
whose fields are the options of a job's ``method`` section, named in ``methods.REGISTRY`` or
announced by an entry point of the group ``lightx2v_sgmd.methods``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import ConfigDict
from torch import Tensor

# B batch, C channels, T latent frames, H, W

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of every dataclass that a job is made of: unknown keys and non-finite numbers are errors."""

STUDENT, TEACHER, FAKE_SCORE = "student", "teacher", "fake_score"
DISCRIMINATOR, PIXEL_DISCRIMINATOR = "discriminator", "pixel_discriminator"

Losses = dict[str, Tensor]
"""Loss terms ``[B]`` by name, already weighted: what is minimised is their sum."""

Discriminate = Callable[[Tensor, Tensor], Tensor]
"""``(x [kB, C, T, H, W], sigma [kB]) -> logits [kB, L]``, the batch's texts repeated k times.

``L`` counts the outputs of all heads: places in a video, for each head.
"""


@dataclass(frozen=True)
class Sample:
    """The tensors of one micro-batch, all ``[B, C, T, H, W]`` float32 but ``sigma`` ``[B]``.

    Which of them carry gradient depends on the update: in the generator's, ``x0`` and ``x_t`` do,
    ``x_fake`` if the method asks for it (``through_fake_score``), ``x_real`` likewise
    (``through_teacher``). In the fake score's, ``velocity_fake`` and ``x_fake`` alone do. In the
    discriminator's, only what ``discriminate`` returns does.

    Attributes:
        x0: The student's rollout.
        noise: Fresh noise of the score step.
        sigma: Score times.
        x_t: ``add_noise(x0, noise, sigma)``.
        velocity_fake: The fake score's velocity at ``x_t``.
        x_fake: Its data prediction.
        x_real: The guided teacher's data prediction at ``x_t``; None in a fake-score update on a
            rollout of its own, which needs no teacher.
        discriminate: The discriminator, for methods that have that role.
        real: Latents of real videos, for methods that read them.
    """

    x0: Tensor
    noise: Tensor
    sigma: Tensor
    x_t: Tensor
    velocity_fake: Tensor
    x_fake: Tensor
    x_real: Tensor | None = None
    discriminate: Discriminate | None = None
    real: Tensor | None = None


@dataclass(frozen=True)
class PairSample:
    """The tensors of one micro-batch of adversarial pre-training, ``[B, C, T, H, W]`` float32.

    Attributes:
        x0: The student's data prediction; carries gradient in the generator's update alone.
        real: The pair's data.
        noise: Fresh noise for the latent discriminator.
        sigma: Its times ``[B]``.
        discriminate: The latent discriminator.
        judge_pixels: The pixel discriminator, ``x0 [kB, ...] -> logits [kB, L]``, if there is one.
    """

    x0: Tensor
    real: Tensor
    noise: Tensor
    sigma: Tensor
    discriminate: Discriminate
    judge_pixels: Callable[[Tensor], Tensor] | None = None


class Method(Protocol):
    """A distillation method: what the training loop reads, constants or options alike."""

    @property
    def name(self) -> str:
        """What a job calls it."""
        ...

    @property
    def roles(self) -> tuple[str, ...]:
        """The networks that it trains, ``student`` first."""
        ...

    @property
    def fake_score_updates(self) -> int:
        """Fake-score updates for each generator update."""
        ...

    @property
    def fresh_rollouts(self) -> bool:
        """Whether each fake-score update draws a rollout of its own.

        Otherwise its one update uses the x_t of the generator's.
        """
        ...

    @property
    def through_fake_score(self) -> bool:
        """Whether the generator's gradient flows through the fake score at x_t."""
        ...

    @property
    def through_teacher(self) -> bool:
        """Whether it flows through the teacher at x_t; the teacher is stopped otherwise."""
        ...

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """Range to draw each iteration's guidance from; None takes ``teacher.guidance_scale``."""
        ...

    def generator_losses(self, sample: Sample) -> Losses:
        """The student's loss terms; they may depend on it through ``x0`` and ``x_t``."""
        ...

    def fake_score_losses(self, sample: Sample) -> Losses:
        """The fake score's loss terms; ``x0`` and ``x_t`` carry no gradient."""
        ...


class AdversarialMethod(Method, Protocol):
    """A method with the role ``discriminator``: heads on the frozen teacher's blocks."""

    @property
    def head_every(self) -> int:
        """One head on every so many blocks of the teacher."""
        ...

    @property
    def head_channels(self) -> int:
        """Channels inside a head, a multiple of 32."""
        ...

    @property
    def discriminator_lr(self) -> float:
        """Learning rate of the heads."""
        ...

    @property
    def reads_latents(self) -> Literal["videos", "pairs"] | None:
        """What it needs in ``data.latents``: encoded videos, a teacher's ODE pairs, or nothing."""
        ...

    @property
    def pretraining(self) -> int:
        """How many iterations, from the first, are adversarial pre-training on ODE pairs."""
        ...

    def discriminator_losses(self, sample: Sample) -> Losses:
        """The heads' loss terms; nothing but the logits carries gradient."""
        ...


class PretrainingMethod(AdversarialMethod, Protocol):
    """A method that begins with adversarial pre-training."""

    @property
    def pixel_weight(self) -> float:
        """Weight of the pixel discriminator; 0 if there is none."""
        ...

    @property
    def vision_encoder(self) -> str | None:
        """Folder of the pixel discriminator's backbone."""
        ...

    @property
    def pixel_frames(self) -> int:
        """Frames of each video that it looks at."""
        ...

    @property
    def finetune_lr(self) -> float:
        """The student's learning rate after pre-training, as a share."""
        ...

    def pretraining_losses(self, sample: PairSample) -> Losses:
        """The student's loss terms; they depend on it through ``x0``."""
        ...

    def pretraining_critic_losses(self, sample: PairSample) -> Losses:
        """The latent heads' loss terms; nothing but the logits carries gradient."""
        ...

    def pretraining_pixel_losses(self, sample: PairSample) -> Losses:
        """The pixel heads' loss terms, if there are any."""
        ...
