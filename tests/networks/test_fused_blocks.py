"""The blocks' own forward pass against diffusers'."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from lightx2v_sgmd.families.loading import stays_float32
from lightx2v_sgmd.networks.fused_blocks import fuse_passes, rotate
from tests.tiny import image_transformer


def stock(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=3, attention_head_dim=32, ffn_dim=200, num_layers=2, text_dim=64
    ).eval()
    is_float32 = stays_float32(network)
    for name, p in network.named_parameters():
        p.data = (p.data + 0.02 * torch.randn_like(p)).to(
            torch.float32 if is_float32(name) else dtype
        )
    return network.requires_grad_(False)


def fused(network: Any) -> Any:
    own = copy.deepcopy(network)
    fuse_passes(own)
    return own


def inputs(batch: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, 16, 3, 8, 10, generator=generator).to(dtype)
    text = torch.randn(batch, 20, 64, generator=generator).to(dtype)
    return x_t, torch.linspace(900, 300, batch), text


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).float().norm() / expected.float().norm())


@pytest.mark.parametrize("batch", [1, 2])
def test_without_a_gradient_float32_agrees_to_rounding(batch: int) -> None:
    network, (x_t, times, text) = stock(), inputs(batch, torch.float32)
    before = x_t.clone(), text.clone()
    with torch.no_grad():
        expected = network(x_t, times, text, return_dict=False)[0]
        got = fused(network)(x_t, times, text, return_dict=False)[0]
    assert difference(got, expected) < 1e-6
    assert torch.equal(x_t, before[0]) and torch.equal(text, before[1])


@pytest.mark.parametrize("batch", [1, 2])
def test_bfloat16_is_as_precise_as_diffusers(batch: int) -> None:
    """Every intermediate value has the precision that diffusers gives it.

    Whether it has the same bits too depends on the processor: one video's layer norm adds and
    multiplies in one kernel, which rounds to float32 once or twice.
    """
    network, (x_t, times, text) = stock(torch.bfloat16), inputs(batch, torch.bfloat16)
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(x_t.double(), times, text.double())[0]
        expected = network(x_t, times, text, return_dict=False)[0]
        got = fused(network)(x_t, times, text, return_dict=False)[0]
    assert got.dtype == torch.bfloat16
    assert difference(got, expected) < 0.4 * difference(expected, exact)
    if batch > 1:
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_gradients_are_those_of_diffusers() -> None:
    network, (x_t, times, text) = stock().requires_grad_(True), inputs(2, torch.float32)
    gradients = []
    for each in (network, fused(network)):
        each(x_t, times, text, return_dict=False)[0].square().mean().backward()
        gradients.append({name: p.grad for name, p in each.named_parameters()})
    expected, got = gradients
    assert all(g is not None for g in expected.values())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-9)


def test_every_token_may_have_its_own_time() -> None:
    network, (x_t, _, text) = stock(), inputs(2, torch.float32)
    times = torch.linspace(900, 300, 2 * 60).view(2, 60)
    with torch.no_grad():
        expected = network(x_t, times, text, return_dict=False)[0]
        got = fused(network)(x_t, times, text, return_dict=False)[0]
    assert difference(got, expected) < 1e-6


def test_a_copy_runs_its_own_weights() -> None:
    network, (x_t, times, text) = fused(stock()), inputs(1, torch.float32)
    other = copy.deepcopy(network)
    for p in network.blocks.parameters():
        p.data.zero_()
    with torch.no_grad():
        got = other(x_t, times, text, return_dict=False)[0]
        expected = stock()(x_t, times, text, return_dict=False)[0]
    assert difference(got, expected) < 1e-6


def test_blocks_that_attend_to_an_image_stay_as_they_are() -> None:
    network = image_transformer()
    fuse_passes(network)
    assert "forward" not in vars(network.blocks[0])


def test_rotating_turns_each_pair_by_its_angle() -> None:
    angles = torch.tensor([0.3, 1.1])
    cos, sin = (f(angles).repeat_interleave(2)[None, None, None] for f in (torch.cos, torch.sin))
    x = torch.tensor([1.0, 0.0, 0.0, 2.0])[None, None, None]
    expected = [angles[0].cos(), angles[0].sin(), -2 * angles[1].sin(), 2 * angles[1].cos()]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            got = rotate(x.clone(), cos, sin)
        torch.testing.assert_close(got.flatten(), torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_on_a_cpu_gets_the_rows_of_a_head_together(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries, keys and values of the video; the text is read as it is."""
    from diffusers.models import attention_dispatch

    real, together = attention_dispatch.dispatch_attention_fn, []

    def attend(query: Any, key: Any, value: Any, **options: Any) -> Any:
        if len(query[0]) == len(key[0]):
            every = (query, key, value)
            together.append([x.transpose(1, 2).is_contiguous() for x in every])
        return real(query, key, value, **options)

    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", attend)
    network, (x_t, times, text) = fused(stock(dtype)), inputs(2, dtype)
    with torch.no_grad():
        network(x_t, times, text)
    assert together == [[True] * 3] * 2
