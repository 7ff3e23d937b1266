"""Discriminator heads: their layers, the blocks they read, and what their logits depend on.

The design is that of arXiv 2507.18569, App. B.1 and B.2.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightx2v_sgmd.networks.discriminator_heads import (
    FrameHead,
    Head,
    Heads,
    as_volume,
    capture_blocks,
    head_blocks,
)

# B batch, D width, T, H, W frames, height and width in patches


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_third_block_has_a_head() -> None:
    """App. B.2: 10 heads on CogVideoX-2B's 30 blocks, 14 on the 42 of 5B; 13 on Wan-14B's 40."""
    assert [len(head_blocks(blocks, 3)) for blocks in (30, 42, 40)] == [10, 14, 13]
    assert head_blocks(9, 3) == [2, 5, 8] and head_blocks(3, 1) == [0, 1, 2]
    assert head_blocks(10, 3) == [2, 5, 8] and head_blocks(2, 3) == [1]
    assert head_blocks(5, 5) == [4] and head_blocks(6, 5) == [4]


class Blocks(nn.Module):
    """Blocks that each add their number's power of ten."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Add(10.0**i) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Add(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


def test_outputs_of_the_blocks_with_a_head_are_read_in_their_order() -> None:
    network = Blocks(5)
    with capture_blocks(network.blocks, 2, lambda x: -x) as found:
        network(torch.zeros(1))
        network(torch.ones(1))  # as checkpointing runs blocks again
    assert [float(x) for x in found] == [-11.0, -1111.0]
    network(torch.zeros(1))
    assert len(found) == 2  # the hooks are gone
    with pytest.raises(RuntimeError), capture_blocks(network.blocks, 1, lambda x: x):
        raise RuntimeError
    assert not any(block._forward_hooks for block in network.blocks)


def test_tokens_become_a_volume() -> None:
    """Token ``(t H + h) W + w`` of a video goes to its place ``[t, h, w]``."""
    tokens = normal(2, 3 * 4 * 5, 6)
    volume = as_volume(tokens, (3, 4, 5))
    assert volume.shape == (2, 6, 3, 4, 5)
    for b, t, h, w in ((0, 0, 0, 0), (1, 2, 1, 3), (0, 1, 3, 4)):
        assert torch.equal(volume[b, :, t, h, w], tokens[b, (t * 4 + h) * 5 + w])


def written_head(head: Any, x: Tensor) -> Tensor:
    """App. B.2, frame by frame: 3x3x3, norm, SiLU, 3x3 of stride 2, norm, SiLU; twice; 1x1."""
    assert [type(layer) for layer in head.norms] == [nn.GroupNorm] * 4
    norms = list(head.norms)
    for stage in range(2):
        volume, frame = head.volume[stage], head.frame[stage]
        x = F.conv3d(x, volume.weight, volume.bias, stride=1, padding=1)
        first, second = norms[2 * stage : 2 * stage + 2]
        x = F.silu(F.group_norm(x, 32, first.weight, first.bias))
        frames = [
            F.conv2d(x[:, :, t], frame.weight, frame.bias, stride=2, padding=1)
            for t in range(x.shape[2])
        ]
        x = torch.stack(frames, 2)
        x = F.silu(F.group_norm(x, 32, second.weight, second.bias))
    logits = [F.conv2d(x[:, :, t], head.logits.weight, head.logits.bias) for t in range(x.shape[2])]
    return torch.stack([frame.flatten(1) for frame in logits], 1).flatten(1)


def shaken(head: nn.Module) -> Any:
    """Norms of a fresh head are ones and zeros; these are not."""
    with torch.no_grad():
        for seed, p in enumerate(head.parameters()):
            p.add_(0.1 * normal(*p.shape, seed=seed))
    return head


def test_a_head_is_what_the_paper_describes() -> None:
    torch.manual_seed(0)
    head = shaken(Head(48, 64))
    x = normal(2, 48, 3, 8, 12)
    logits = head(x)
    assert logits.shape == (2, 3 * 2 * 3)  # two strides of 2; as many frames as before
    torch.testing.assert_close(logits, written_head(head, x), rtol=1e-5, atol=1e-5)
    assert {name: tuple(p.shape) for name, p in head.named_parameters() if p.ndim > 1} == {
        "volume.0.weight": (64, 48, 3, 3, 3),
        "volume.1.weight": (64, 64, 3, 3, 3),
        "frame.0.weight": (64, 64, 3, 3),
        "frame.1.weight": (64, 64, 3, 3),
        "logits.weight": (1, 64, 1, 1),
    }
    assert [tuple(frame.stride) for frame in head.frame] == [(2, 2)] * 2
    assert [tuple(volume.stride) for volume in head.volume] == [(1, 1, 1)] * 2


def test_a_head_of_more_stages() -> None:
    head = Head(32, 64, stages=3)
    assert len(head.volume) == len(head.frame) == 3 and len(head.norms) == 6
    assert head(normal(1, 32, 2, 8, 8)).shape == (1, 2)


def test_a_head_sees_time() -> None:
    """A frame's logits change with the next frame: norms aside, only 3-D convolutions reach it."""
    torch.manual_seed(0)
    head: Any = Head(32, 32, stages=1)
    head.norms = nn.ModuleList([nn.Identity(), nn.Identity()])
    x = normal(1, 32, 4, 4, 4).requires_grad_()
    logits = head(x).view(4, -1)
    (gradient,) = torch.autograd.grad(logits[2].sum(), x)
    assert gradient.abs().sum((0, 1, 3, 4)).gt(0).tolist() == [False, True, True, True]
    still = torch.stack([x.detach()[:, :, 0]] * 4, 2)
    assert not torch.allclose(head(still), head(x.detach()))


def test_a_frames_head_is_what_the_paper_describes() -> None:
    """App. B.1: 4x4 convolutions of stride 2, 32 groups, SiLU."""
    torch.manual_seed(0)
    head = shaken(FrameHead(48, 64))
    x = normal(3, 48, 8, 8)
    expected = x
    for layer, norm in zip(head.convolutions, head.norms, strict=True):
        expected = F.conv2d(expected, layer.weight, layer.bias, stride=2, padding=2)
        expected = F.silu(F.group_norm(expected, 32, norm.weight, norm.bias))
    expected = F.conv2d(expected, head.logits.weight, head.logits.bias).flatten(1)
    torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-5)
    assert head(x).shape == (3, 3 * 3)
    assert [tuple(layer.weight.shape) for layer in head.convolutions] == [
        (64, 48, 4, 4),
        (64, 64, 4, 4),
    ]
    assert tuple(head.logits.weight.shape) == (1, 64, 1, 1)


@pytest.mark.parametrize(("kind", "shape"), [(Head, (2, 4, 4)), (FrameHead, (4, 4))])
def test_heads_stand_side_by_side(kind: Any, shape: tuple[int, ...]) -> None:
    widths = [32, 48, 64]
    heads = Heads(kind, widths, 32, seed=3)
    features = [normal(2, width, *shape, seed=width) for width in widths]
    expected = torch.cat([head(x) for head, x in zip(heads.heads, features, strict=True)], 1)
    assert torch.equal(heads(features), expected)
    assert [type(head) for head in heads.heads] == [kind] * 3
    with pytest.raises(ValueError, match="zip"):
        heads(features[:2])


def test_a_seed_gives_the_same_heads_and_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (Heads(Head, [32], 32, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    for one, same, different in zip(
        first.parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(one, same)
        if one.ndim > 1:
            assert not torch.equal(one, different)


def test_logits_are_float32_and_features_take_the_heads_type() -> None:
    heads = Heads(FrameHead, [32], 32, seed=0).to(torch.bfloat16)
    logits = heads([normal(1, 32, 4, 4)])
    assert logits.dtype == torch.float32
    (head,) = heads.heads
    assert torch.equal(logits, head(normal(1, 32, 4, 4).bfloat16()).float())
