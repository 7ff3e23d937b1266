"""The generator's step must leave nothing behind in the fake score; for any strategy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.parallel import FAKE_SCORE, Strategy


def generator_loss(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Tensor:
    return 10 * ((x_t - velocity) ** 2).mean() - (x0 * velocity).mean()


def fake_score_loss(x0: Tensor, x_t: Tensor, velocity: Tensor) -> Tensor:
    return ((x0 - velocity) ** 2).mean()


def what_is_left(
    build: Callable[[], Strategy], waiting: Callable[[Strategy], bool], micro_batches: int
) -> list[str]:
    """Lists what the generator's step left in the fake score: nothing if all is well.

    Args:
        build: Makes the strategy anew, always the same.
        waiting: True if the fake score has any gradient.
        micro_batches: Accumulated into the update.
    """
    found: list[str] = []
    updates = []
    for with_generator in (True, False):
        strategy = build()
        generator = torch.Generator().manual_seed(0)
        for micro in range(micro_batches):
            x0, x_t = torch.randn(2, 2, 4, 2, 8, 8, generator=generator)
            told = Conditioning({"text": torch.randn(2, 6, 16, generator=generator)})
            query = strategy.fake_score_at(x0, x_t, torch.tensor([0.3, 0.8]), told)
            if with_generator:
                to_x0, to_x_t = query.generator_gradient(generator_loss, through=True)
                assert to_x0 is not None and to_x_t is not None
                assert bool((to_x0 != 0).any()) and bool((to_x_t != 0).any())
                if micro == 0 and waiting(strategy):
                    found.append("a gradient is waiting")
            query.backward(fake_score_loss)
        norm = strategy.step(FAKE_SCORE, 1e-3)
        updates.append((norm, dict(strategy.whole_tensors(FAKE_SCORE))))
        strategy.close()
    (norm, weights), (norm_alone, weights_alone) = updates
    if norm != norm_alone:
        found.append(f"the gradient's norm is {norm}, not {norm_alone}")
    if any(not torch.equal(weights[name], weights_alone[name]) for name in weights):
        found.append("the update differs")
    return found


def has_gradients(network: nn.Module) -> bool:
    return any(p.grad is not None for p in network.parameters())
