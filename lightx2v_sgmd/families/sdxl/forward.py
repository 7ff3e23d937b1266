"""The forward pass of SDXL's U-Net: the noise that it predicts.

Images are videos of one frame outside this folder: latents have T = 1 there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# B batch, C channels, T = 1 frame, h, w latent height and width, S text tokens, D text width,
# P width of the pooled vector


def predict_noise(
    network: Any,
    x_t: Tensor,
    timestep: Tensor,
    text: Tensor,
    pooled: Tensor,
    pixels: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Computes the noise that a network predicts (epsilon).

    The network is told an image's size before and after cropping, and where the crop begins
    (arXiv 2307.01952, Sec. 2.2). All images here are whole, as in the stock pipeline: both sizes
    are that of the latents, and the crop begins at 0, 0.

    Args:
        network: A ``UNet2DConditionModel``, or an engine around one.
        x_t: ``[B, C, 1, h, w]``; cast to the network's precision.
        timestep: ``[B]``, whole numbers from 0 to 999.
        text: ``[B, S, D]``.
        pooled: ``[B, P]``.
        pixels: Pixels of a latent position, in height and in width.
        dtype: The network's precision, if autocast makes it differ from its weights'.

    Returns:
        ``[B, C, 1, h, w]`` in that precision.
    """
    module = getattr(network, "module", network)
    dtype = dtype or module.conv_in.weight.dtype
    height, width = pixels * x_t.shape[-2], pixels * x_t.shape[-1]
    size = torch.tensor(
        [height, width, 0, 0, height, width], dtype=torch.float32, device=x_t.device
    )
    result: Tensor = network(
        sample=x_t.to(dtype).squeeze(2),
        timestep=timestep,
        encoder_hidden_states=text.to(dtype),
        added_cond_kwargs={"text_embeds": pooled.to(dtype), "time_ids": size.expand(len(x_t), -1)},
        return_dict=False,
    )[0]
    return result.unsqueeze(2)
