"""The training loop: an iteration of score distillation in terms of roles.

SGMD's is Alg. 1 of arXiv 2605.30116; the others differ in what their method declares. What is
random comes from ``data``, what is a loss from the method, where a network lives from the
strategy. Roles: the ``student`` makes videos, the ``teacher`` is frozen, the ``fake_score`` follows
the student, a ``discriminator`` reads the teacher's blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor

from distill.data import Batch, Batches
from distill.pixels import PixelFeatures
from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.flow import add_noise, guide, x0_from_velocity
from lightx2v_sgmd.job import Job, Train
from lightx2v_sgmd.methods import AdversarialMethod, Losses, Method, PretrainingMethod, Sample
from lightx2v_sgmd.methods.base import PairSample
from lightx2v_sgmd.parallel import (
    DISCRIMINATOR,
    FAKE_SCORE,
    PIXEL_DISCRIMINATOR,
    STUDENT,
    TEACHER,
    Ranks,
    Strategy,
)
from lightx2v_sgmd.rollout import rollout

# B batch of this rank, C channels, T latent frames, h, w latent height and width


_REMEDY = "lower the learning rates or leave out what broke it, and go on from the last checkpoint"


class NotFiniteError(UserError):
    """A loss or a gradient is not a number any more; the message says which and where."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; {_REMEDY}")


def learning_rate_factor(iteration: int, train: Train) -> float:
    """Linear warm-up, flat, then linear to zero over the last ``train.decay`` iterations."""
    warm = (iteration + 1) / max(1, train.warmup)
    cold = (train.iterations - iteration) / max(1, train.decay)
    return min(1.0, warm, cold)


def pretraining(method: Method) -> int:
    """How many iterations, from the first, are adversarial pre-training."""
    if DISCRIMINATOR not in method.roles:
        return 0
    return cast(AdversarialMethod, method).pretraining


def updates_done(method: Method, step: int) -> dict[str, int]:
    """How many updates each role has had after so many iterations."""
    distilled = max(0, step - pretraining(method))
    done = {
        STUDENT: step,
        FAKE_SCORE: distilled * method.fake_score_updates,
        DISCRIMINATOR: step,
        PIXEL_DISCRIMINATOR: step - distilled,
    }
    return {role: done[role] for role in method.roles}


@dataclass
class Iteration:
    """What one iteration did.

    Attributes:
        step: Iterations done, this one included.
        exit_step: Which step of the rollout carried gradient.
        losses: Each term's mean over the global batch, and over the updates that have it.
        grad_norm: By role, before clipping; of the last update.
        lr: By role.
        updates: How many updates have had each term.
        stop: Whether any process was asked to stop.
    """

    step: int
    exit_step: int
    losses: dict[str, float] = field(default_factory=dict)
    grad_norm: dict[str, float] = field(default_factory=dict)
    lr: dict[str, float] = field(default_factory=dict)
    updates: dict[str, int] = field(default_factory=dict)
    stop: bool = False


class Trainer:
    """Runs iterations.

    An iteration is one update of the student and those that its method asks for: of the fake score
    on the same x_t, or several on rollouts of their own, and of a discriminator.

    Args:
        job: What to train.
        strategy: The networks.
        batches: The data.
        pixels: The pixel discriminator's backbone, for a method that has one.
    """

    def __init__(
        self,
        job: Job,
        strategy: Strategy,
        batches: Batches,
        pixels: PixelFeatures | None = None,
    ) -> None:
        self.job, self.method, self.pixels = job, job.method, pixels
        self.strategy, self.batches = strategy, batches
        self._terms = Terms(strategy.ranks)

    def run(self, done: int, stop: Callable[[], bool] = lambda: False) -> Iterator[Iteration]:
        """Runs the iterations after the first ``done``.

        Ends early after an iteration in which ``stop`` said so on any rank.
        """
        for iteration in range(done, self.job.train.iterations):
            result = self.iterate(iteration, stop)
            yield result
            if result.stop:
                return

    def iterate(self, iteration: int, stop: Callable[[], bool] = lambda: False) -> Iteration:
        """One update of the student with those that go with it; ``iteration`` counts from 0.

        Raises:
            NotFiniteError: a loss or gradient is not finite; no rank has saved anything of it.
        """
        own_rollouts = self.method.fake_score_updates if self.method.fresh_rollouts else 0
        draw = iteration * (1 + own_rollouts)
        result = Iteration(iteration + 1, self.batches.exit_step(draw))
        updates = [partial(self.add_gradients, draw=draw, iteration=iteration)]
        if iteration < pretraining(self.method):
            own_rollouts, updates = 0, [partial(self.add_pretraining_gradients, draw=draw)]
        updates += [
            partial(self.add_fake_score_gradients, draw=draw + 1 + update)
            for update in range(own_rollouts)
        ]
        for update in updates:
            trained: tuple[str, ...] = ()
            for micro in range(self.job.train.accumulation):
                trained = update(micro)
            result.stop |= self._terms.add_to(result, stop())
            for role in trained:
                self._step(role, iteration, result)
        self.strategy.update_average()
        return result

    def add_gradients(self, micro: int, draw: int, iteration: int) -> tuple[str, ...]:
        """Adds a micro-batch's gradients to the student and to what shares its x_t.

        Updates nothing.

        Returns:
            The roles that got gradient.
        """
        batch = self.batches.micro_batch(draw, micro)
        method, strategy, sigma = self.method, self.strategy, batch.sigma
        x0 = self._rollout(batch, draw)
        x_t = add_noise(x0, batch.score_noise, sigma)
        guidance = self._guidance(iteration)
        x_real = None if method.through_teacher else self.teacher_x0(x_t.detach(), batch, guidance)

        def generator_loss(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Tensor:
            real = self.teacher_x0(x_t, batch, guidance) if x_real is None else x_real
            sample = self._sample(batch, x0, x_t, velocity, real, update=False)
            return self._terms.total(method.generator_losses(sample), batch.prompts)

        def fake_score_loss(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Tensor:
            sample = self._sample(batch, x0, x_t, velocity, x_real)
            return self._terms.total(method.fake_score_losses(sample), batch.prompts)

        def critic_loss(velocity: Tensor) -> Tensor:
            fake = velocity.detach()
            sample = self._sample(batch, x0.detach(), x_t.detach(), fake, x_real, update=True)
            losses = cast(AdversarialMethod, method).discriminator_losses(sample)
            return self._terms.total(losses, batch.prompts)

        # The generator's loss depends on the student through x0 and x_t only. Its gradient there,
        # carried back by a second scalar, keeps the networks' backward passes apart.
        query = strategy.fake_score_at(x0, x_t, sigma, batch.text)
        seen: list[Tensor] = []

        def noting(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Tensor:
            seen.append(velocity)
            return generator_loss(x0, x_t, velocity)

        to_x0, to_x_t = query.generator_gradient(noting, method.through_fake_score)
        trained = [STUDENT]
        if not method.fresh_rollouts:
            query.backward(fake_score_loss)
            trained.append(FAKE_SCORE)
        if DISCRIMINATOR in method.roles:
            strategy.backward(DISCRIMINATOR, critic_loss(seen[0]))
            trained.append(DISCRIMINATOR)
        carried = sum(
            (value * gradient).sum()
            for value, gradient in ((x0, to_x0), (x_t, to_x_t))
            if gradient is not None
        )
        assert isinstance(carried, Tensor), "the generator's loss does not depend on the student"
        strategy.backward(STUDENT, carried)
        return tuple(trained)

    def add_fake_score_gradients(self, micro: int, draw: int) -> tuple[str, ...]:
        """Adds a micro-batch's gradient to the fake score, on a rollout of its own."""
        batch = self.batches.micro_batch(draw, micro)
        with torch.no_grad():
            x0 = self._rollout(batch, draw)
        x_t = add_noise(x0, batch.score_noise, batch.sigma)

        def loss(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Tensor:
            sample = self._sample(batch, x0, x_t, velocity, None)
            return self._terms.total(self.method.fake_score_losses(sample), batch.prompts)

        self.strategy.fake_score_at(x0, x_t, batch.sigma, batch.text).backward(loss)
        return (FAKE_SCORE,)

    def add_pretraining_gradients(self, micro: int, draw: int) -> tuple[str, ...]:
        """Adds a micro-batch's gradients to the student and the discriminator, on ODE pairs."""
        method, strategy = cast(PretrainingMethod, self.method), self.strategy
        batch = self.batches.pair_batch(draw, micro, method.pixel_frames)
        x_t = add_noise(batch.x0, batch.noise, batch.sigma)
        velocity = strategy.velocity(STUDENT, x_t, batch.sigma, batch.text).float()
        x0 = x0_from_velocity(x_t, velocity, batch.sigma)

        def sample(x0: Tensor, update: bool) -> PairSample:
            def discriminate(x: Tensor, sigma: Tensor) -> Tensor:
                text = batch.text.repeat(len(x) // len(batch.text), 1, 1)
                return strategy.logits(x, sigma, text, update)

            def judge_pixels(x0: Tensor) -> Tensor:
                assert self.pixels is not None
                with torch.set_grad_enabled(not update):
                    features = self.pixels(x0, batch.frames)
                return strategy.frame_logits(features, update).view(len(x0), -1)

            return PairSample(
                x0=x0,
                real=batch.x0,
                noise=batch.critic_noise,
                sigma=batch.critic_sigma,
                discriminate=discriminate,
                judge_pixels=None if self.pixels is None else judge_pixels,
            )

        def generator_loss(x0: Tensor) -> Tensor:
            return self._terms.total(method.pretraining_losses(sample(x0, False)), batch.prompts)

        to_x0 = strategy.gradient(generator_loss, x0)
        seen = sample(x0.detach(), True)
        critics = {DISCRIMINATOR: method.pretraining_critic_losses}
        if self.pixels is not None:
            critics[PIXEL_DISCRIMINATOR] = method.pretraining_pixel_losses
        for role, losses in critics.items():
            strategy.backward(role, self._terms.total(losses(seen), batch.prompts))
        strategy.backward(STUDENT, (x0 * to_x0).sum())
        return STUDENT, *critics

    def _rollout(self, batch: Batch, draw: int) -> Tensor:
        student = partial(self.strategy.velocity, STUDENT, text=batch.text)
        return rollout(student, batch.noise, self.job.schedule, self.batches.exit_step(draw))

    def _sample(
        self,
        batch: Batch,
        x0: Tensor,
        x_t: Tensor,
        velocity: Tensor,
        x_real: Tensor | None,
        update: bool | None = None,
    ) -> Sample:
        """What a method's losses see; ``update`` says whom the discriminator's gradient is for."""
        velocity = velocity.float()
        x_fake = x0_from_velocity(x_t, velocity, batch.sigma)
        discriminate = None
        if update is not None and DISCRIMINATOR in self.method.roles:

            def discriminate(x: Tensor, sigma: Tensor) -> Tensor:
                text = batch.text.repeat(len(x) // len(batch.text), 1, 1)
                return self.strategy.logits(x, sigma, text, update)

        return Sample(
            x0=x0,
            noise=batch.score_noise,
            sigma=batch.sigma,
            x_t=x_t,
            velocity_fake=velocity,
            x_fake=x_fake,
            x_real=x_real,
            discriminate=discriminate,
            real=batch.real,
        )

    def _guidance(self, iteration: int) -> float:
        """The job's guidance, or this iteration's draw from the method's range."""
        if self.method.guidance_range is None:
            return self.job.teacher.guidance_scale
        return self.batches.uniform("guidance", iteration, *self.method.guidance_range)

    def teacher_x0(self, x_t: Tensor, batch: Batch, scale: float) -> Tensor:
        """The guided teacher's data prediction; both of its passes run as one batch."""
        teacher = partial(self.strategy.velocity, TEACHER)
        with torch.set_grad_enabled(x_t.requires_grad):
            if scale == 1:
                velocity = teacher(x_t, batch.sigma, text=batch.text).float()
            else:
                text = torch.cat([batch.text, batch.negative_text])
                both = teacher(torch.cat([x_t, x_t]), batch.sigma.repeat(2), text=text).float()
                cond, uncond = both.chunk(2)
                velocity = guide(cond, uncond, scale)
            return x0_from_velocity(x_t, velocity, batch.sigma)

    def _step(self, role: str, iteration: int, result: Iteration) -> None:
        """Updates a role; of several updates in an iteration the last one's norm is noted."""
        factor = learning_rate_factor(iteration, self.job.train)
        if role == STUDENT and 0 < pretraining(self.method) <= iteration:
            factor *= cast(PretrainingMethod, self.method).finetune_lr
        result.lr[role] = self.strategy.settings.optimizers[role].lr * factor
        norm = result.grad_norm[role] = self.strategy.step(role, result.lr[role])
        if not math.isfinite(norm):
            raise NotFiniteError(f"step {result.step}: the gradient of {role} is {norm}")


class Terms:
    """The loss terms of one update, until they are averaged over the global batch.

    Args:
        ranks: Who shares it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._values: dict[str, list[Tensor]] = {}
        self._prompts: dict[str, list[int]] = {}

    def total(self, losses: Losses, prompts: Sequence[int]) -> Tensor:
        """The sum of the terms, averaged over the batch; notes each term."""
        for name, values in losses.items():
            self._values.setdefault(name, []).append(values.detach())
            self._prompts.setdefault(name, []).extend(prompts)
        return torch.stack([values.mean() for values in losses.values()]).sum()

    def add_to(self, result: Iteration, stop: bool) -> bool:
        """Averages each term over the global batch, and forgets it.

        A term that several updates of an iteration have is the mean over those.

        Returns:
            Whether any rank was asked to stop.

        Raises:
            NotFiniteError: a term is not finite; names the prompts.
        """
        terms = {name: torch.cat(values) for name, values in self._values.items()}
        prompts, self._values, self._prompts = self._prompts, {}, {}
        here = [values.mean() for values in terms.values()]
        summed = self._ranks.sum(torch.stack([*here, here[0].new_tensor(float(stop))]))
        *means, stops = (summed / self._ranks.size).tolist()
        if not all(math.isfinite(mean) for mean in means):
            raise NotFiniteError(self._explain(result.step, terms, prompts))
        for name, mean in zip(terms, means, strict=True):
            count = result.updates[name] = result.updates.get(name, 0) + 1
            before = result.losses.get(name, 0.0)
            result.losses[name] = before + (mean - before) / count
        return bool(stops > 0)

    def _explain(self, step: int, terms: dict[str, Tensor], prompts: dict[str, list[int]]) -> str:
        """Which terms are not finite, and for which prompts of any rank."""
        bad = {
            name: [prompts[name][i] for i in (~values.isfinite()).nonzero().flatten().tolist()]
            for name, values in terms.items()
            if not values.isfinite().all()
        }
        everywhere: dict[str, set[int]] = {}
        for found in self._ranks.gather(bad):
            for name, which in found.items():
                everywhere.setdefault(name, set()).update(which)
        return (
            "; ".join(
                f"step {step}: the loss {name} is not finite for the prompts {sorted(which)}"
                for name, which in everywhere.items()
            )
            or f"step {step}: the sum of finite losses is not finite"
        )
