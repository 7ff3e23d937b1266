"""Products with their epilogue against PyTorch's own."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import nn

from infer.network import fused_products

X86 = platform.machine().lower() in ("x86_64", "amd64")
needs_x86 = pytest.mark.skipif(not X86, reason="oneDNN is used on x86")
CPU = torch.device("cpu")


def network(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return (
        WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, ffn_dim=64, num_layers=2, text_dim=16
        )
        .to(dtype)
        .requires_grad_(False)
    )


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another maker's processor than Intel's."""
    monkeypatch.setattr(fused_products, "mkl_is_faster", lambda: False)


@needs_x86
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("amd")
def test_a_block_gives_the_same(compiled: bool) -> None:
    plain, own = network(), network()
    fused_products.fuse_products(own, CPU, compiled)
    kinds = {type(module) for module in own.blocks.modules()}
    assert nn.Linear not in kinds and fused_products.OnednnProduct in kinds
    x_t, text = torch.randn(2, 16, 2, 8, 8), torch.randn(2, 9, 16)
    with torch.no_grad():
        expected = plain(x_t, torch.tensor([500.0, 20.0]), text, return_dict=False)[0]
        got = own(x_t, torch.tensor([500.0, 20.0]), text, return_dict=False)[0]
    assert (got - expected).norm() / expected.norm() < 1e-6


@needs_x86
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_gives_the_same(packed: bool, gelu: bool, bias: bool) -> None:
    fused_products.register()
    layer = nn.Linear(48, 80, bias=bias).requires_grad_(False)
    own = fused_products.OnednnProduct(layer, 100, gelu, packed)
    x = torch.randn(3, 7, 48)
    expected = F.gelu(layer(x), approximate="tanh") if gelu else layer(x)
    torch.testing.assert_close(own(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.weight, layer.weight)


def test_bfloat16_keeps_pytorchs_products() -> None:
    """PyTorch's are oneDNN's there, and GELU of a rounded product is what diffusers computes."""
    own = network(torch.bfloat16)
    fused_products.fuse_products(own, CPU, compiled=False)
    assert all(type(block.ffn.net[2]) is nn.Linear for block in own.blocks)


def test_intels_processors_keep_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    """GELU overwrites the product there, and a compiler gets the block as it is."""
    monkeypatch.setattr(fused_products, "mkl_is_faster", lambda: True)
    plain, own, compiled = network(), network(), network()
    fused_products.fuse_products(own, CPU, compiled=False)
    fused_products.fuse_products(compiled, CPU, compiled=True)
    assert {type(block.ffn.net[0]) for block in own.blocks} == {fused_products.GeluInPlace}
    assert type(own.blocks[0].ffn.net[2]) is nn.Linear
    assert {type(m) for m in compiled.modules()} == {type(m) for m in plain.modules()}
    x_t, text = torch.randn(1, 16, 2, 8, 8), torch.randn(1, 9, 16)
    with torch.no_grad():
        expected = plain(x_t, torch.tensor([500.0]), text, return_dict=False)[0]
        got = own(x_t, torch.tensor([500.0]), text, return_dict=False)[0]
    assert (got - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize(
    ("vendor", "has_mkl", "faster"),
    [("GenuineIntel", True, True), ("AuthenticAMD", True, False), ("GenuineIntel", False, False)],
)
def test_the_maker_of_the_processor_decides(
    vendor: str, has_mkl: bool, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"vendor_id\t: {vendor}\n")
    assert fused_products.mkl_is_faster.__wrapped__() is faster


@pytest.mark.usefixtures("amd")
def test_another_onednn_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Any, weight: Any, bias: Any, gelu: bool) -> torch.Tensor:
        return torch.zeros(len(x), 96)

    monkeypatch.setattr(fused_products, "_onednn", wrong)
    assert fused_products.onednn_works.__wrapped__() is False
    own = network()
    monkeypatch.setattr(fused_products, "onednn_works", lambda: False)
    fused_products.fuse_products(own, CPU, compiled=False)
    assert type(own.blocks[0].ffn.net[2]) is nn.Linear


def test_a_product_with_gelu_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_products.gelu_product_works.__wrapped__(CPU, torch.float32)
    layer = nn.Linear(48, 80).requires_grad_(False)
    x = torch.randn(2, 5, 48)
    expected = F.gelu(layer(x), approximate="tanh")
    torch.testing.assert_close(fused_products.GeluProduct(layer)(x), expected)
    monkeypatch.setattr(fused_products, "_agrees", lambda *args: False)
    assert fused_products.gelu_product_works.__wrapped__(CPU, torch.float32) is False


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gpus_product_with_gelu(dtype: torch.dtype) -> None:
    cuda = torch.device("cuda")
    assert fused_products.gelu_product_works(cuda, dtype)
    own = network(dtype).to(cuda)
    fused_products.fuse_products(own, cuda, compiled=False)
    assert all(type(block.ffn.net[0]) is fused_products.GeluProduct for block in own.blocks)
