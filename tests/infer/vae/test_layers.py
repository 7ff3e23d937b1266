"""Single layers against plain PyTorch: chunks of frames give what the whole video gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from infer.vae.layers import Caches, CausalConvolution, Convolution, Target

CPU = torch.device("cpu")
LAYOUTS = [torch.channels_last_3d, torch.contiguous_format]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_causal_convolution_in_chunks_is_one_over_the_padded_video(
    layout: torch.memory_format,
) -> None:
    layer = nn.Conv3d(3, 5, 3)
    ours = CausalConvolution(layer, Target(CPU, layout))
    x = noise(2, 3, 7, 6, 5)
    # Two frames of zeros before the first one, and a ring of zeros around each frame.
    expected = layer(F.pad(x, (1, 1, 1, 1, 2, 0)))
    caches: Caches = {}
    parts = [ours.causal(part, caches) for part in x.split([1, 4, 2], dim=2)]
    torch.testing.assert_close(torch.cat(parts, 2), expected, rtol=1e-4, atol=1e-5)


def test_two_videos_have_caches_of_their_own() -> None:
    ours = CausalConvolution(nn.Conv3d(2, 2, 3), Target(CPU, torch.contiguous_format))
    x, y = noise(2, 1, 2, 3, 4, 4)
    alone: Caches = {}
    expected = [ours.causal(part, alone) for part in x.split([1, 2], dim=2)]
    first: Caches = {}
    second: Caches = {}
    for index, (mine, other) in enumerate(zip(x.split([1, 2], 2), y.split([1, 2], 2), strict=True)):
        assert torch.equal(ours.causal(mine, first), expected[index])
        ours.causal(other, second)


def test_the_first_chunk_has_one_frame() -> None:
    ours = CausalConvolution(nn.Conv3d(2, 2, 3), Target(CPU, torch.contiguous_format))
    with pytest.raises(AssertionError, match="must have one frame"):
        ours.causal(noise(1, 2, 2, 4, 4), {})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parts", [1, 2])
def test_enlarging_repeats_pixels_and_makes_frames_of_channels(
    layout: torch.memory_format, parts: int
) -> None:
    ours = Convolution(nn.Conv2d(3, 3, 3), Target(CPU, layout))
    x = noise(2, 3 * parts, 4, 5, 6)
    frames = x.view(2, parts, 3, 4, 5, 6).permute(0, 2, 3, 1, 4, 5).reshape(2, 3, 4 * parts, 5, 6)
    expected = frames.repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert torch.equal(ours.enlarged(x, parts), expected)
