"""The training loop: SGMD's iteration in terms of roles (arXiv 2605.30116, Alg. 1).

What is random comes from ``data``, what is a loss from the method, where a network lives from the
strategy. Roles: the ``student`` makes videos, the ``teacher`` is frozen, the ``fake_score`` follows
the student.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from distill.data import Batch, Batches
from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.flow import add_noise, guide, x0_from_velocity
from lightx2v_sgmd.job import Job, Train
from lightx2v_sgmd.methods import Losses, Method, Sample
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, TEACHER, TRAINED, Strategy
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


@dataclass
class Iteration:
    """What one iteration did.

    Attributes:
        step: Iterations done, this one included.
        exit_step: Which step of the rollout carried gradient.
        losses: Each term's mean over the global batch.
        grad_norm: By role, before clipping.
        lr: By role.
        stop: Whether any process was asked to stop.
    """

    step: int
    exit_step: int
    losses: dict[str, float] = field(default_factory=dict)
    grad_norm: dict[str, float] = field(default_factory=dict)
    lr: dict[str, float] = field(default_factory=dict)
    stop: bool = False


class Trainer:
    """Runs iterations.

    Args:
        job: What to train.
        method: The losses.
        strategy: The networks.
        batches: The data.

    Raises:
        UserError: the method asks for something that this loop does not do.
    """

    def __init__(self, job: Job, method: Method, strategy: Strategy, batches: Batches) -> None:
        if (
            method.fake_score_updates != 1
            or method.fresh_rollouts
            or set(method.roles) != {*TRAINED}
        ):
            raise UserError(
                f"method.name: {method.name} needs other updates than one of the student and one "
                "of the fake score on the same x_t, which is what this version does; use sgmd"
            )
        self.job, self.method = job, method
        self.strategy, self.batches = strategy, batches
        self._terms: dict[str, list[Tensor]] = {}
        self._prompts: list[int] = []

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
        """One update of the student and one of the fake score; ``iteration`` counts from 0.

        Raises:
            NotFiniteError: a loss or gradient is not finite; no rank has saved anything of it.
        """
        result = Iteration(iteration + 1, self.batches.exit_step(iteration))
        self._terms, self._prompts = {}, []
        for micro in range(self.job.train.accumulation):
            batch = self.batches.micro_batch(iteration, micro)
            self.add_gradients(batch, result.exit_step)
        result.losses, result.stop = self._mean_losses(result.step, stop())
        rates = {STUDENT: self.job.student, FAKE_SCORE: self.job.fake_score}
        factor = learning_rate_factor(iteration, self.job.train)
        for role, settings in rates.items():
            result.lr[role] = settings.optimizer.lr * factor
            result.grad_norm[role] = self.strategy.step(role, result.lr[role])
        for role, norm in result.grad_norm.items():
            if not math.isfinite(norm):
                raise NotFiniteError(f"step {result.step}: the gradient of {role} is {norm}")
        self.strategy.update_average()
        return result

    def add_gradients(self, batch: Batch, exit_step: int) -> None:
        """Adds the gradients of one micro-batch to both networks; updates neither."""
        sigma = batch.sigma
        student = partial(self.strategy.velocity, STUDENT, text=batch.text)
        x0 = rollout(student, batch.noise, self.job.schedule, exit_step)
        x_t = add_noise(x0, batch.score_noise, sigma)
        x_real = self.teacher_x0(x_t.detach(), batch)

        def sample(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Sample:
            velocity = velocity.float()
            x_fake = x0_from_velocity(x_t, velocity, sigma)
            return Sample(x0, batch.score_noise, sigma, x_t, velocity, x_fake, x_real)

        def generator_loss(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Tensor:
            return self._total(self.method.generator_losses(sample(x0, x_t, velocity)))

        def fake_score_loss(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Tensor:
            return self._total(self.method.fake_score_losses(sample(x0, x_t, velocity)))

        # The generator's loss depends on the student through x0 and x_t only. Its gradient there,
        # carried back by a second scalar, keeps the two networks' backward passes apart.
        score = self.strategy.fake_score_at(x0, x_t, sigma, batch.text)
        to_x0, to_x_t = score.generator_gradient(generator_loss)
        score.backward(fake_score_loss)
        carried = sum(
            (value * gradient).sum()
            for value, gradient in ((x0, to_x0), (x_t, to_x_t))
            if gradient is not None
        )
        assert isinstance(carried, Tensor), "the generator's loss does not depend on the student"
        self.strategy.backward(STUDENT, carried)
        self._prompts += batch.prompts

    @torch.no_grad()
    def teacher_x0(self, x_t: Tensor, batch: Batch) -> Tensor:
        """The guided teacher's data prediction; both of its passes run as one batch."""
        scale = self.job.teacher.guidance_scale
        teacher = partial(self.strategy.velocity, TEACHER)
        if scale == 1:
            velocity = teacher(x_t, batch.sigma, text=batch.text).float()
        else:
            text = torch.cat([batch.text, batch.negative_text])
            both = teacher(torch.cat([x_t, x_t]), batch.sigma.repeat(2), text=text).float()
            cond, uncond = both.chunk(2)
            velocity = guide(cond, uncond, scale)
        return x0_from_velocity(x_t, velocity, batch.sigma)

    def _total(self, losses: Losses) -> Tensor:
        """The sum of the terms, averaged over the batch; notes each term."""
        for name, values in losses.items():
            self._terms.setdefault(name, []).append(values.detach())
        return torch.stack([values.mean() for values in losses.values()]).sum()

    def _mean_losses(self, step: int, stop: bool) -> tuple[dict[str, float], bool]:
        """Each term over the global batch, and whether any rank was asked to stop.

        Raises:
            NotFiniteError: a term is not finite; names the prompts.
        """
        terms = {name: torch.cat(values) for name, values in self._terms.items()}
        here = [values.mean() for values in terms.values()]
        summed = self.strategy.ranks.sum(torch.stack([*here, here[0].new_tensor(float(stop))]))
        *means, stops = (summed / self.strategy.ranks.size).tolist()
        if not all(math.isfinite(mean) for mean in means):
            bad = {
                name: [self._prompts[i] for i in (~values.isfinite()).nonzero().flatten().tolist()]
                for name, values in terms.items()
                if not values.isfinite().all()
            }
            everywhere: dict[str, set[int]] = {}
            for found in self.strategy.ranks.gather(bad):
                for name, prompts in found.items():
                    everywhere.setdefault(name, set()).update(prompts)
            raise NotFiniteError(
                "; ".join(
                    f"step {step}: the loss {name} is not finite for the prompts {sorted(prompts)}"
                    for name, prompts in everywhere.items()
                )
                or f"step {step}: the sum of finite losses is not finite"
            )
        return dict(zip(terms, means, strict=True)), stops > 0
