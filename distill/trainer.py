"""The training loop: one iteration of score distillation in terms of roles.

For SGMD it is Algorithm 1 of arXiv 2605.30116; other methods differ in what they declare. Whatever
is random comes from ``data``, the losses come from the method, and the strategy knows where a
network lives. The ``student`` makes videos, the ``teacher`` is frozen, the ``fake_score`` follows
the student, a ``discriminator`` reads the teacher's blocks. Stopping, watching and timing listen
from outside (``observed``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from distill.data import Batches
from distill.loss_terms import LossAccumulator, UpdateIndex
from distill.observed import Listener, Observed, Stopped
from distill.pixels import PixelFeatures
from distill.predictions import loss_sample, noised, student_sample, teacher_x0
from distill.pretraining import add_pair_gradients
from distill.updates import (
    Iteration,
    average_decay,
    batches_per_iteration,
    check_gradients,
    first_batch,
    first_update,
    update_role,
)
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.methods.base import PairMethod, stage_at
from lightx2v_sgmd.parallel import DISCRIMINATOR, FAKE_SCORE, STUDENT, Strategy, expert_role

# B batch of this rank, C channels, T latent frames, h, w latent height and width

Update = Callable[[int], tuple[str, ...]]
"""Adds the gradients of micro-batch ``n`` and returns the roles that received any."""


class Trainer:
    """Runs iterations.

    An iteration is one update of the student and those that the method asks for: of the fake score
    on the same x_t, or several on rollouts of their own, and of a discriminator.

    Attributes:
        partial_iteration: The record of an iteration that was stopped after some of its updates.

    Args:
        job: The job.
        strategy: The networks.
        batches: The data.
        pixels: The pixel discriminator's backbone, for a method that has one.
    """

    def __init__(
        self, job: Job, strategy: Strategy, batches: Batches, pixels: PixelFeatures | None = None
    ) -> None:
        self.job, self.strategy, self.batches, self.pixels = job, strategy, batches, pixels
        self.losses = LossAccumulator(strategy.ranks)
        self.partial_iteration: Iteration | None = None
        self._where = "starting"

    def listen(self, *listeners: Listener) -> None:
        """Lets listeners hear of each pass from now on."""
        self.strategy = Observed(self.strategy, listeners)

    def where(self) -> str:
        """The place in the run: ``step 3, update 1 of 2, micro-batch 1 of 4``."""
        return self._where

    def run(self, done: int, partial_iteration: Iteration | None = None) -> Iterator[Iteration]:
        """Runs the iterations after the first ``done``, and ends early if a listener stops it.

        The update that is stopped is dropped; ``partial_iteration`` has those before it.

        Args:
            done: Iterations done.
            partial_iteration: The ``partial_iteration`` of an earlier part of the run.
        """
        for iteration in range(done, self.job.train.iterations):
            try:
                result = self.iterate(iteration, partial_iteration)
            except Stopped:
                return
            partial_iteration = None
            yield result

    def iterate(self, iteration: int, partial_iteration: Iteration | None = None) -> Iteration:
        """Runs one iteration; ``iteration`` counts from 0.

        Raises:
            NotFiniteError: a loss or gradient is not finite; the update has changed no weights.
            Stopped: a listener stopped it; ``partial_iteration`` has the updates that were done.
        """
        updates = self.updates(iteration)
        result = partial_iteration
        if result is None:
            first = self.batches.exit_index(updates[0][0], 0)
            result = Iteration(iteration + 1, self.batches.exit_step(first))
        self.partial_iteration = partial_iteration
        for number in range(result.done, len(updates)):
            batch_index, update = updates[number]
            doing = f"step {result.step}, update {number + 1} of {len(updates)}"
            trained: tuple[str, ...] = ()
            for micro in range(self.job.train.accumulation):
                self._where = f"{doing}, micro-batch {micro + 1} of {self.job.train.accumulation}"
                trained = update(micro)
            self._where = doing
            index = UpdateIndex(iteration, number, batch_index)
            self.losses.add_to(result, index)
            check_gradients(self.strategy, trained[1:], index)
            for role in trained:
                update_role(self.strategy, self.job, role, result, index)
            result.done, self.partial_iteration = number + 1, result
        student = expert_role(STUDENT, self.batches.expert(updates[0][0]))
        own_step = result.step - first_update(self.job.method, student)
        self.strategy.update_average(average_decay(own_step, self.job.train), student)
        self.partial_iteration = None
        return result

    def updates(self, iteration: int) -> list[tuple[int, Update]]:
        """The updates of an iteration: the index of the batch that each uses, and its gradients."""
        first = first_batch(self.job.method, iteration)
        stage = stage_at(self.job.method, iteration).method
        if isinstance(stage, PairMethod):
            return [(first, partial(add_pair_gradients, self, stage, batch_index=first))]
        own_rollouts = batches_per_iteration(stage) - 1
        works = [self.add_gradients, *[self.add_fake_score_gradients] * own_rollouts]
        return [
            (first + number, partial(work, batch_index=first + number, iteration=iteration))
            for number, work in enumerate(works)
        ]

    def try_update(self, index: UpdateIndex, micro_batches: Iterable[int]) -> None:
        """Computes the gradients of an update and changes no weights.

        Raises:
            NotFiniteError: a loss or gradient is not finite.
        """
        trained: tuple[str, ...] = ()
        for micro in micro_batches:
            trained = self.updates(index.iteration)[index.update][1](micro)
        self.losses.means(index)
        check_gradients(self.strategy, trained, index)

    def add_gradients(self, micro: int, batch_index: int, iteration: int) -> tuple[str, ...]:
        """Adds a micro-batch's gradients to the student and to the roles that share its x_t.

        Returns:
            The roles that received gradient.
        """
        batch = self.batches.micro_batch(batch_index, micro)
        method = stage_at(self.job.method, iteration).method
        strategy, time = self.strategy, batch.time
        exit_step = self.batches.exit_step(self.batches.exit_index(batch_index, micro))
        x0, made = student_sample(strategy, batch, self.job.steps, exit_step)
        x_t = noised(strategy, batch, made)
        guidance = self._guidance(iteration, batch.expert)
        x_real = None
        if not method.through_teacher:
            x_real = teacher_x0(strategy, x_t.detach(), batch, guidance)
        predictions: list[Tensor] = []

        def generator_loss(x0: Tensor, x_t: Tensor, predicted: Tensor) -> Tensor:
            predictions.append(predicted.detach())
            real = teacher_x0(strategy, x_t, batch, guidance) if x_real is None else x_real
            sample = loss_sample(strategy, batch, x0, x_t, predicted, real, update=False)
            return self.losses.total(method.generator_losses(sample), batch)

        def fake_score_loss(x0: Tensor, x_t: Tensor, predicted: Tensor) -> Tensor:
            sample = loss_sample(strategy, batch, x0, x_t, predicted, x_real)
            return self.losses.total(method.fake_score_losses(sample), batch)

        # The generator's loss depends on the student through x0 and x_t only. Its gradient there,
        # carried back by a second scalar, keeps the networks' backward passes apart.
        query = strategy.fake_score_at(x0, x_t, time, batch.conditioning)
        to_x0, to_x_t = query.generator_gradient(generator_loss, method.through_fake_score)
        student = expert_role(STUDENT, batch.expert)
        trained = [student]
        if not method.fresh_rollouts:
            query.backward(fake_score_loss)
            trained.append(expert_role(FAKE_SCORE, batch.expert))
        if DISCRIMINATOR in method.roles:
            detached = x0.detach(), x_t.detach(), predictions[0]
            sample = loss_sample(strategy, batch, *detached, x_real, update=True)
            losses = method.discriminator_losses(sample)
            strategy.backward(DISCRIMINATOR, self.losses.total(losses, batch))
            trained.append(DISCRIMINATOR)
        carried = [
            (value * gradient).sum()
            for value, gradient in ((x0, to_x0), (x_t, to_x_t))
            if gradient is not None
        ]
        assert carried, "the generator's loss does not depend on the student"
        strategy.backward(student, sum(carried[1:], carried[0]))
        return tuple(trained)

    def add_fake_score_gradients(
        self, micro: int, batch_index: int, iteration: int
    ) -> tuple[str, ...]:
        """Adds a micro-batch's gradient to the fake score, on a rollout of its own."""
        batch = self.batches.micro_batch(batch_index, micro)
        method = stage_at(self.job.method, iteration).method
        exit_step = len(self.job.steps) - 1
        if not method.whole_rollouts:
            exit_step = self.batches.exit_step(self.batches.exit_index(batch_index, micro))
        with torch.no_grad():
            _, x0 = student_sample(self.strategy, batch, self.job.steps, exit_step)
        x_t = noised(self.strategy, batch, x0)

        def loss(x0: Tensor, x_t: Tensor, predicted: Tensor) -> Tensor:
            sample = loss_sample(self.strategy, batch, x0, x_t, predicted, None)
            return self.losses.total(method.fake_score_losses(sample), batch)

        self.strategy.fake_score_at(x0, x_t, batch.time, batch.conditioning).backward(loss)
        return (expert_role(FAKE_SCORE, batch.expert),)

    def _guidance(self, iteration: int, expert: int) -> float:
        """The job's guidance scale for an expert, or this iteration's from the method's range."""
        if self.job.method.guidance_range is None:
            return self.job.teacher.guidance_of(expert)
        return self.batches.uniform("guidance", iteration, *self.job.method.guidance_range)
