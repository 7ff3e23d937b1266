"""FlashAttention 4 through a stand-in that is as hard to compile as the package is."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._guards import active_fake_mode

from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.networks import attention
from lightx2v_sgmd.networks.compiling import compile_blocks
from lightx2v_sgmd.networks.flash_attention4 import MODULE, flash_attention_4
from lightx2v_sgmd.networks.fused_blocks import fuse_passes
from tests.tiny import make_tiny_wan

Calls = list[tuple[torch.Size, torch.Size, float | None]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Installs the stand-in; the list gets the shapes and the scale of each call."""
    seen: Calls = []
    compiled: dict[Any, str] = {}

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, causal: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        # The package does this to choose whether to build its kernel; dynamo cannot trace it.
        assert active_fake_mode() is None, "a kernel cannot be built for tensors without data"
        compiled.setdefault((q.dtype, q.shape[-1], torch.is_grad_enabled()), str(q.data_ptr()))
        seen.append((q.shape, k.shape, softmax_scale))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, scale=softmax_scale, is_causal=causal
        )
        return out.transpose(1, 2), None

    package, module = types.ModuleType("flash_attn"), types.ModuleType(MODULE)
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, MODULE, module)
    return seen


def test_the_stand_in_itself_cannot_be_compiled(calls: Calls) -> None:
    function = torch.compile(
        lambda q: sys.modules[MODULE].flash_attn_func(q, q, q)[0], fullgraph=True, backend="eager"
    )
    with pytest.raises(Exception, match="active_fake_mode|Unsupported|fake|data_ptr"):
        function(torch.randn(1, 8, 2, 16))


@pytest.mark.parametrize("returns_lse", [True, False])
def test_it_gives_the_output_alone_with_the_scale_and_mask_asked_for(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, returns_lse: bool
) -> None:
    if not returns_lse:
        module = sys.modules[MODULE]
        both = module.flash_attn_func
        monkeypatch.setattr(module, "flash_attn_func", lambda *a, **kw: both(*a, **kw)[0])
    q, k, v = torch.randn(3, 1, 5, 2, 16).unbind()
    scores = torch.einsum("bqnd,bknd->bnqk", q, k)
    for scale in (None, 0.5):
        weights = (scores * (16**-0.5 if scale is None else scale)).softmax(-1)
        expected = torch.einsum("bnqk,bknd->bqnd", weights, v)
        got = flash_attention_4()(q, k, v, softmax_scale=scale)
        assert got.is_contiguous()
        torch.testing.assert_close(got, expected)
    first = flash_attention_4()(q, k, v, causal=True)[:, 0]
    torch.testing.assert_close(first, v[:, 0])


def test_it_is_what_a_network_calls(calls: Calls, tmp_path: Path) -> None:
    """No network and no hub: the network calls the function of ``flash_attn.cute``."""
    assert attention._trial("flash_4_hub", torch.device("cpu"), torch.bfloat16, 12) is None
    network, expected, run = networks(tmp_path)
    calls.clear()
    torch.testing.assert_close(run(network), expected, atol=1e-5, rtol=0)
    assert len(calls) == 4  # self and cross, in both blocks


@pytest.mark.slow
def test_a_compiled_network_calls_it_too(calls: Calls, tmp_path: Path) -> None:
    """By the engine's own compiler, for the first size and for others, which share kernels."""
    network, expected, run = networks(tmp_path)
    plain = open_wan(tmp_path / "tiny").load_transformer()
    news: list[str] = []
    fuse_passes(network)
    attention.apply(network, "flash4")
    with torch.no_grad():
        compile_blocks(network, news.append)
    calls.clear()
    torch.testing.assert_close(run(network), expected, atol=1e-5, rtol=0)
    assert len(calls) == 4 and not news
    assert {k for _, k, _ in calls} == {torch.Size([1, 8, 4, 12]), torch.Size([1, 512, 4, 12])}
    for frames, side in ((3, 4), (2, 6)):
        x_t = torch.randn(1, 4, frames, side, side)
        calls.clear()
        torch.testing.assert_close(run(network, x_t), run(plain, x_t), atol=1e-5, rtol=0)
        tokens = frames * side * side // 4
        assert {q for q, _, _ in calls} == {torch.Size([1, tokens, 4, 12])} and len(calls) == 4
    assert len(news) == 1 and "share kernels for any size" in news[0]  # and none failed


def networks(folder: Path) -> tuple[Any, Tensor, Any]:
    """A tiny network with FlashAttention 4, what it should give, and how to run it."""
    model = open_wan(make_tiny_wan(folder / "tiny"))
    x_t, sigma, text = (
        torch.randn(1, 4, 2, 4, 4),
        torch.tensor([0.9]),
        pad_text([torch.randn(5, 16)]),
    )

    def run(network: Any, x_t: Tensor = x_t) -> Tensor:
        with torch.no_grad():
            return velocity(network, x_t, sigma, text)

    expected = run(model.load_transformer())
    network = model.load_transformer()
    attention.apply(network, "flash4")
    return network, expected, run
