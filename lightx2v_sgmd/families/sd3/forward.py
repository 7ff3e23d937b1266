"""The forward pass of SD3's network, whose result is a velocity.

Images are videos of one frame outside this folder: latents have T = 1 there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# B batch, C channels, h, w latent height and width, S text tokens, D text width, P width of the
# pooled vector


def velocity(
    network: Any,
    x_t: Tensor,
    sigma: Tensor,
    text: Tensor,
    pooled: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Computes a network's velocity.

    Args:
        network: An ``SD3Transformer2DModel``, or an engine around one.
        x_t: ``[B, C, 1, h, w]``; cast to the network's precision.
        sigma: ``[B]`` float32.
        text: ``[B, S, D]``.
        pooled: ``[B, P]``.
        dtype: The network's precision, if autocast makes it differ from its weights'.

    Returns:
        ``[B, C, 1, h, w]`` in that precision.
    """
    module = getattr(network, "module", network)
    dtype = dtype or module.context_embedder.weight.dtype
    result: Tensor = network(
        hidden_states=x_t.to(dtype).squeeze(2),
        timestep=1000 * sigma,
        encoder_hidden_states=text.to(dtype),
        pooled_projections=pooled.to(dtype),
        return_dict=False,
    )[0]
    return result.unsqueeze(2)
