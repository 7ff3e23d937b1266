"""Features of latents in the teacher's own network, for a Frechet distance without outside weights.

A video model that is conditioned on noise is a feature extractor at every noise level (arXiv
2306.03881). Here a video's latents get a quarter of a fixed noise, the network runs as far as its
middle block, and the mean of that block's output over all tokens is the feature.

Legend: B batch, C channels, T latent frames, h, w latent height and width, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.experts import boundary_of, expert_at
from lightx2v_sgmd.networks.block_loading import repeated_blocks
from lightx2v_sgmd.parallel.sequence import whole_tokens
from lightx2v_sgmd.sampling.sampler import noise_for

SIGMA: Final = 0.25
_NOISE_SEED: Final = 0


class _Reached(Exception):
    """The middle block has run; the rest of the network is not needed."""


def features_expert(model: Model) -> int:
    """The index of the model's expert whose network gives the features: it serves ``SIGMA``."""
    return expert_at(boundary_of(model.experts), SIGMA)


@torch.no_grad()
def middle_features(
    model: Model,
    network: Any,
    predict: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    *,
    whole_pass: bool = False,
) -> Tensor:
    """Takes features of latents; every rank that shares the network's tokens calls it.

    Args:
        model: The network's model.
        network: The network with the blocks.
        predict: Runs the network at ``x_t`` and the times ``[B]``; its text should be the same for
            all videos that are compared.
        x0: ``[B, C, T, h, w]``.
        whole_pass: Let the network run to its end, as a network that is shared over processes
            must; otherwise it stops after the middle block.

    Returns:
        ``[B, D]`` float32.
    """
    found: list[Tensor] = []
    patches = zip(x0.shape[2:], model.size_rules.patch, strict=True)
    count = math.prod(length // patch for length, patch in patches)

    def take_features(module: Any, arguments: Any, output: Any) -> None:
        if found:
            return
        found.append(whole_tokens(network, model.video_tokens(output), count).float().mean(1))
        if not whole_pass:
            raise _Reached

    time = torch.full((len(x0),), SIGMA, device=x0.device)
    noise = noise_for(model, _NOISE_SEED, tuple(x0.shape[1:])).to(x0.device)
    blocks = repeated_blocks(network)
    handle = blocks[len(blocks) // 2].register_forward_hook(take_features)
    try:
        predict(model.interpolant.add_noise(x0, noise.expand_as(x0), time), time)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]
