"""Which updates an iteration has, how fast they learn, and what they did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from lightx2v_sgmd.job.schema import Train
from lightx2v_sgmd.methods import AdversarialMethod, Method
from lightx2v_sgmd.parallel import DISCRIMINATOR, FAKE_SCORE, PIXEL_DISCRIMINATOR, STUDENT


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
        done: Updates done of it; all of them once it is whole.
        stepped: How often each role has been updated.
    """

    step: int
    exit_step: int
    losses: dict[str, float] = field(default_factory=dict)
    grad_norm: dict[str, float] = field(default_factory=dict)
    lr: dict[str, float] = field(default_factory=dict)
    updates: dict[str, int] = field(default_factory=dict)
    done: int = 0
    stepped: dict[str, int] = field(default_factory=dict)
