"""The colours of latents, without a VAE."""

from __future__ import annotations

import numpy as np
import torch

from infer.serve.work.latent_colours import FrameMeans, LinearDecoder


def test_a_linear_decoder_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(3, 5, generator=generator) - 0.5
    decoder = LinearDecoder()
    assert decoder.decode(torch.zeros(4, 2, 3, 3)) is None
    for _ in range(3):
        latents = 0.3 * torch.randn(4, 2, 3, 3, generator=generator)
        colours = torch.einsum("rc,cthw->rthw", true[:, :4], latents) + 0.5
        decoder.learn(latents, colours)
    pictures = decoder.decode(latents)
    assert pictures is not None and pictures.shape == (2, 3, 3, 3) and pictures.dtype == np.uint8
    # The ridge term pulls a little.
    expected = 255 * colours.clamp(0, 1).permute(1, 2, 3, 0).numpy()
    assert np.abs(pictures - expected).max() < 5


def test_frames_are_averaged_over_their_latent() -> None:
    frames = np.zeros((9, 4, 6, 3), np.uint8)
    frames[:, :2, :3] = np.arange(9, dtype=np.uint8)[:, None, None, None] * 20
    means = FrameMeans((3, 2, 2))
    chunks = [frames[:1], frames[1:7], frames[7:]]
    assert sum(len(chunk) for chunk in means.watching(iter(chunks))) == 9
    colours = means.colours
    assert colours is not None and colours.shape == (3, 3, 2, 2)
    # Frame 0; frames 1 to 4; frames 5 to 8, each 20 times its number.
    wanted = torch.tensor([0.0, 50.0, 130.0]) / 255
    assert torch.allclose(colours[:, :, 0, 0].float(), wanted.expand(3, 3))
    assert colours[:, :, 1, 1].abs().max() == 0
    cut = FrameMeans((3, 2, 2))
    list(cut.watching(iter(chunks[:2])))
    assert cut.colours is None
