"""The training loop: an iteration of score distillation in terms of roles.

SGMD's is Alg. 1 of arXiv 2605.30116; the others differ in what their method declares. What is
random comes from ``data``, what is a loss from the method, where a network lives from the
strategy. Roles: the ``student`` makes videos, the ``teacher`` is frozen, the ``fake_score`` follows
the student, a ``discriminator`` reads the teacher's blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor

from distill.data import Batch, Batches
from distill.loss_terms import NotFiniteError, Place, Terms
from distill.pixels import PixelFeatures
from distill.updates import Iteration, learning_rate_factor, pretraining
from lightx2v_sgmd.flow import add_noise, guide, x0_from_velocity
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.methods import AdversarialMethod, PretrainingMethod, Sample
from lightx2v_sgmd.methods.base import PairSample
from lightx2v_sgmd.parallel import (
    DISCRIMINATOR,
    FAKE_SCORE,
    PIXEL_DISCRIMINATOR,
    STUDENT,
    TEACHER,
    Strategy,
)
from lightx2v_sgmd.rollout import rollout

# B batch of this rank, C channels, T latent frames, h, w latent height and width


class Stopped(Exception):
    """A process was asked to stop; every role is as the last update has left it."""


Update = Callable[[int], tuple[str, ...]]
"""Adds the gradients of a micro-batch, by its number, and gives the roles that got any."""


class Trainer:
    """Runs iterations.

    An iteration is one update of the student and those that its method asks for: of the fake score
    on the same x_t, or several on rollouts of their own, and of a discriminator.

    Args:
        job: What to train.
        strategy: The networks.
        batches: The data.
        pixels: The pixel discriminator's backbone, for a method that has one.
        tick: Told what comes next, again and again; silence means that something hangs.
    """

    def __init__(
        self,
        job: Job,
        strategy: Strategy,
        batches: Batches,
        pixels: PixelFeatures | None = None,
        tick: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self.job, self.method, self.pixels = job, job.method, pixels
        self.strategy, self.batches = strategy, batches
        self._terms = Terms(strategy.ranks)
        self._tick = tick
        self._stop: Callable[[], bool] = lambda: False
        self.begun: Iteration | None = None

    def run(
        self,
        done: int,
        stop: Callable[[], bool] = lambda: False,
        begun: Iteration | None = None,
    ) -> Iterator[Iteration]:
        """Runs the iterations after the first ``done``.

        Ends early once ``stop`` says so on any rank, between two passes. The update that this
        happens in is dropped. If it is not the first of its iteration, that is ``begun``.

        Args:
            done: Iterations done.
            stop: Whether to stop.
            begun: The ``begun`` of an earlier part of the run, to go on with.
        """
        for iteration in range(done, self.job.train.iterations):
            try:
                result = self.iterate(iteration, stop, begun)
            except Stopped:
                return
            begun = None
            yield result

    def iterate(
        self,
        iteration: int,
        stop: Callable[[], bool] = lambda: False,
        begun: Iteration | None = None,
    ) -> Iteration:
        """One update of the student with those that go with it; ``iteration`` counts from 0.

        Raises:
            NotFiniteError: a loss or gradient is not finite; the update has changed no weights.
            Stopped: ``stop`` said so on some rank; ``begun`` says what is done of the iteration.
        """
        updates = self.updates(iteration)
        result = begun or Iteration(iteration + 1, self.batches.exit_step(updates[0][0]))
        self._stop, self.begun = stop, begun
        micro_batches = self.job.train.accumulation
        for number in range(result.done, len(updates)):
            draw, update = updates[number]
            doing = f"step {result.step}, update {number + 1} of {len(updates)}"
            trained: tuple[str, ...] = ()
            for micro in range(micro_batches):
                self._tick(f"{doing}, micro-batch {micro + 1} of {micro_batches}")
                self._look()
                trained = update(micro)
            place = Place(iteration, number, draw)
            self._terms.add_to(result, place)
            self._check_gradients(trained[1:], place)
            for role in trained:
                self._tick(f"{doing}, stepping the {role}")
                self._step(role, iteration, result, place)
            result.done, self.begun = number + 1, result
        self.strategy.update_average()
        self.begun = None
        return result

    def try_update(self, place: Place, micro_batches: Iterable[int]) -> None:
        """Computes the gradients of an update and changes no weights.

        Raises:
            NotFiniteError: a loss or gradient is not finite.
        """
        trained: tuple[str, ...] = ()
        for micro in micro_batches:
            trained = self.updates(place.iteration)[place.update][1](micro)
        self._terms.add_to(Iteration(place.iteration + 1, 0), place)
        self._check_gradients(trained, place)

    def updates(self, iteration: int) -> list[tuple[int, Update]]:
        """An iteration's updates: the number of the global batch that each draws, and its work."""
        own_rollouts = self.method.fake_score_updates if self.method.fresh_rollouts else 0
        draw = iteration * (1 + own_rollouts)
        if iteration < pretraining(self.method):
            return [(draw, partial(self.add_pretraining_gradients, draw=draw))]
        first = partial(self.add_gradients, draw=draw, iteration=iteration)
        later = range(draw + 1, draw + 1 + own_rollouts)
        return [
            (draw, first),
            *((d, partial(self.add_fake_score_gradients, draw=d)) for d in later),
        ]

    def _look(self) -> None:
        """Leaves the update if a rank was asked to stop.

        All ranks look at the same places, so they leave together. ``flops.stretches`` says what is
        computed between them.
        """
        if self.strategy.ranks.any(self._stop()):
            raise Stopped

    def _check_gradients(self, roles: tuple[str, ...], place: Place) -> None:
        """Looks at the gradients of roles before another one is updated.

        Found later, the weights that such a gradient came from would be gone.
        """
        for role in roles:
            norm = self.strategy.gradient_norm(role)
            if not math.isfinite(norm):
                raise NotFiniteError.of_gradient(role, norm, place)

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
        x_real = None
        if not method.through_teacher:
            x_real = self.teacher_x0(x_t.detach(), batch, guidance)
            self._look()

        def generator_loss(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Tensor:
            real = self.teacher_x0(x_t, batch, guidance) if x_real is None else x_real
            sample = self._sample(batch, x0, x_t, velocity, real, update=False)
            return self._terms.total(method.generator_losses(sample), batch)

        def fake_score_loss(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Tensor:
            sample = self._sample(batch, x0, x_t, velocity, x_real)
            return self._terms.total(method.fake_score_losses(sample), batch)

        def critic_loss(velocity: Tensor) -> Tensor:
            fake = velocity.detach()
            sample = self._sample(batch, x0.detach(), x_t.detach(), fake, x_real, update=True)
            losses = cast(AdversarialMethod, method).discriminator_losses(sample)
            return self._terms.total(losses, batch)

        # The generator's loss depends on the student through x0 and x_t only. Its gradient there,
        # carried back by a second scalar, keeps the networks' backward passes apart.
        query = strategy.fake_score_at(x0, x_t, sigma, batch.text)
        seen: list[Tensor] = []

        def noting(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Tensor:
            seen.append(velocity)
            return generator_loss(x0, x_t, velocity)

        to_x0, to_x_t = query.generator_gradient(noting, method.through_fake_score)
        self._look()
        trained = [STUDENT]
        if not method.fresh_rollouts:
            query.backward(fake_score_loss)
            self._look()
            trained.append(FAKE_SCORE)
        if DISCRIMINATOR in method.roles:
            strategy.backward(DISCRIMINATOR, critic_loss(seen[0]))
            self._look()
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
            return self._terms.total(self.method.fake_score_losses(sample), batch)

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
            return self._terms.total(method.pretraining_losses(sample(x0, False)), batch)

        to_x0 = strategy.gradient(generator_loss, x0)
        self._look()
        seen = sample(x0.detach(), True)
        critics = {DISCRIMINATOR: method.pretraining_critic_losses}
        if self.pixels is not None:
            critics[PIXEL_DISCRIMINATOR] = method.pretraining_pixel_losses
        for role, losses in critics.items():
            strategy.backward(role, self._terms.total(losses(seen), batch))
        strategy.backward(STUDENT, (x0 * to_x0).sum())
        return STUDENT, *critics

    def _rollout(self, batch: Batch, draw: int) -> Tensor:
        student = partial(self.strategy.velocity, STUDENT, text=batch.text)
        exit_step = self.batches.exit_step(draw)
        return rollout(
            student, batch.noise, self.job.schedule, exit_step, lambda step, x_t: self._look()
        )

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

    def _step(self, role: str, iteration: int, result: Iteration, place: Place) -> None:
        """Updates a role; of several updates in an iteration the last one's norm is noted."""
        factor = learning_rate_factor(iteration, self.job.train)
        if role == STUDENT and 0 < pretraining(self.method) <= iteration:
            factor *= cast(PretrainingMethod, self.method).finetune_lr
        result.lr[role] = self.strategy.settings.optimizers[role].lr * factor
        norm = result.grad_norm[role] = self.strategy.step(role, result.lr[role])
        if not math.isfinite(norm):
            raise NotFiniteError.of_gradient(role, norm, place)
        result.stepped[role] = result.stepped.get(role, 0) + 1
