from __future__ import annotations

import logging
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch

from lightx2v_sgmd.families.text_rows import fold_text_padding, pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.networks import attention
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import make_tiny_wan

CPU = torch.device("cpu")


def test_sdpa_is_there_and_the_rest_says_why_not() -> None:
    found = {k.name: k for k in attention.kernels(CPU, torch.float32, 12)}
    assert list(found) == list(attention.KERNELS)
    assert found["sdpa"].available
    for name in ("flash4", "flash3", "sdpa-cudnn", "flash2", "xformers", "sdpa-efficient", "sage"):
        assert not found[name].available
        assert "needs a CUDA device, and this is cpu" in found[name].reason


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", attention.KERNELS)
def test_every_kernel_that_runs_here_is_near_float32(
    name: str, dtype: torch.dtype, where: str
) -> None:
    """Self-attention of a long row and cross-attention of a short one, heads of 128 as in Wan."""
    device = torch.device(where)
    kernel = {k.name: k for k in attention.kernels(device, dtype, 128)}[name]
    if not kernel.available:
        pytest.skip(kernel.reason)
    known = attention.KERNELS[name]
    generator = torch.Generator().manual_seed(3)
    for queries, keys in ((300, 300), (130, 37)):
        q = torch.randn(2, queries, 3, 128, generator=generator).to(dtype)
        k, v = torch.randn(2, 2, keys, 3, 128, generator=generator).to(dtype)
        scores = torch.einsum("bqnd,bknd->bnqk", q.float(), k.float()) / 128**0.5
        expected = torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), v.float())
        with torch.no_grad(), attention._asked_directly(known.backend):
            got = attention_dispatch.dispatch_attention_fn(
                q.to(device),
                k.to(device),
                v.to(device),
                backend=attention_dispatch.AttentionBackendName(known.backend),
            )
        assert got.dtype == dtype
        limit = 2e-5 if dtype == torch.float32 else known.tolerance / 2
        torch.testing.assert_close(got.float().cpu(), expected, atol=limit, rtol=0)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="flash2 cannot run here: PyTorch sees no CUDA device"):
        attention.choose("flash2", torch.device("cuda"), torch.bfloat16, 128)
    for asked in ("sdpa", "auto"):
        with pytest.raises(UserError, match="sdpa cannot run here: it fails on a small example"):
            attention.choose(asked, torch.device("cuda"), torch.bfloat16, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_takes_what_runs(dtype: torch.dtype) -> None:
    assert attention.choose("auto", CPU, dtype, 128) == "sdpa"
    assert attention.choose("sdpa", CPU, dtype, 128) == "sdpa"


def test_a_forced_kernel_that_cannot_run_is_refused() -> None:
    with pytest.raises(UserError, match="^attention: flash2 cannot run here: FlashAttention 2 nee"):
        attention.choose("flash2", CPU, torch.bfloat16, 128)
    with pytest.raises(UserError, match="'flash9' is unknown; use auto, flash4, flash3"):
        attention.choose("flash9", CPU, torch.bfloat16, 128)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> torch.device:
    """A machine whose GPU has this capability, with every package but no kernel that runs."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda q, k, v: 1)  # PyTorch's flash attention
    monkeypatch.setattr(attention, "_unusable", lambda module: None)
    return torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [((10, 0), "flash4"), ((9, 0), "flash3"), ((8, 6), "flash2"), ((7, 5), "xformers")],
)
def test_the_fastest_kernel_of_the_gpu_is_chosen(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: str
) -> None:
    device = pretend_gpu(monkeypatch, capability)
    monkeypatch.setattr(attention, "_trial", lambda *args: None)
    assert attention.choose("auto", device, torch.bfloat16, 128) == chosen
    # In float32 flash attention cannot run whatever the GPU.
    assert attention.choose("auto", device, torch.float32, 128) == "xformers"
    with pytest.raises(UserError, match="runs in bfloat16 and float16|needs compute capability"):
        attention.choose("flash3", device, torch.float32, 128)


def test_an_approximate_kernel_is_only_taken_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = pretend_gpu(monkeypatch, (9, 0))
    works = {"sage": None, "native": None}
    monkeypatch.setattr(attention, "_trial", lambda backend, *args: works.get(backend, "it fails"))
    assert attention.choose("auto", device, torch.bfloat16, 128) == "sdpa"
    assert attention.choose("sage", device, torch.bfloat16, 128) == "sage"
    sage = {k.name: k for k in attention.kernels(device, torch.bfloat16, 128)}["sage"]
    assert "approximate: it multiplies queries and keys in int8" in sage.reason


def without_flash3(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A Hopper GPU on which every kernel but FlashAttention 3 runs."""
    monkeypatch.setattr(
        attention, "_trial", lambda backend, *args: "no" if backend == "_flash_3" else None
    )
    return pretend_gpu(monkeypatch, (9, 0))


def test_without_flash3_hopper_takes_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    device = without_flash3(monkeypatch)
    assert attention.choose("auto", device, torch.bfloat16, 128) == "sdpa-cudnn"
    found = {k.name: k.reason for k in attention.kernels(device, torch.bfloat16, 128)}
    assert found["sdpa"] == "PyTorch ran on cuda in bfloat16 with heads of 128"


def test_where_plain_pytorch_runs_cudnn_it_is_taken_without_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = without_flash3(monkeypatch)
    real, empty = torch.empty, []

    def on_the_cpu(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        empty.append((size, dtype, device.type))
        return real(*size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", on_the_cpu)
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda q, k, v: 3)  # cuDNN's
    assert attention.choose("auto", device, torch.bfloat16, 128) == "sdpa"
    assert attention.choose("sdpa-cudnn", device, torch.bfloat16, 128) == "sdpa-cudnn"
    assert empty[0] == ((1, 300, 2, 128), torch.bfloat16, "cuda")
    reason = {k.name: k.reason for k in attention.kernels(device, torch.bfloat16, 128)}["sdpa"]
    assert reason.endswith("by cuDNN's kernel")
    assert not attention.sdpa_runs_cudnn(CPU, torch.bfloat16, 128)


def test_pytorch_is_asked_by_the_number_that_it_has_for_cudnn() -> None:
    assert int(torch.nn.attention.SDPBackend.CUDNN_ATTENTION.value) == 3
    q = torch.zeros(1, 2, 300, 128)
    choices = {int(choice.value) for choice in torch.nn.attention.SDPBackend.__members__.values()}
    assert torch._fused_sdp_choice(q, q, q) in choices - {3}


def test_cudnn_is_not_taken_before_the_version_that_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = without_flash3(monkeypatch)
    for version, need in ((91002, "9.10.2"), (91500, "9.15.0"), (None, "0.0.0")):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)  # noqa: B023
        assert attention.choose("auto", device, torch.bfloat16, 128) == "flash2"
        with pytest.raises(UserError, match=rf"right from cuDNN 9.15.1 on, and this is {need}"):
            attention.choose("sdpa-cudnn", device, torch.bfloat16, 128)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91501)
    assert attention.choose("auto", device, torch.bfloat16, 128) == "sdpa-cudnn"


def test_a_kernel_that_fails_its_trial_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_gpu(monkeypatch, (9, 0))
    works = {"native": None, "flash": None}
    monkeypatch.setattr(
        attention, "_trial", lambda backend, *args: works.get(backend, "it fails: no kernel image")
    )
    assert attention.choose("auto", device, torch.bfloat16, 128) == "flash2"
    with pytest.raises(UserError, match="flash3 cannot run here: it fails: no kernel image"):
        attention.choose("flash3", device, torch.bfloat16, 128)


def test_a_package_that_does_not_import_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ask = attention._unusable
    device = pretend_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(attention, "_unusable", ask)
    (tmp_path / "flash_attn_interface.py").write_text("raise OSError('undefined symbol: c10')\n")
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "cute.py").write_text("raise TypeError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {k.name: k.reason for k in attention.kernels(device, torch.bfloat16, 128)}
    problem = "is installed but does not import"
    assert found["flash3"] == f"FlashAttention 3 {problem}: undefined symbol: c10"
    assert found["flash4"] == f"FlashAttention 4 {problem}: TypeError"
    assert found["sage"] == "SageAttention is not installed (pip install sageattention)"


def test_a_trial_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention._trial("native", CPU, torch.float32, 12) is None
    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", lambda q, k, v, **kwargs: v)
    said = attention._trial("native", CPU, torch.float32, 12)
    assert said is not None and "wrong on a small example of 300 queries and 300 keys" in said


@pytest.mark.parametrize(("keys", "rows"), [(300, slice(256, 300)), (37, slice(0, 37))])
def test_a_trial_finds_a_wrong_last_tile_and_a_wrong_text(
    monkeypatch: pytest.MonkeyPatch, keys: int, rows: slice
) -> None:
    """A kernel that ignores keys beyond the last whole tile of 128, or those of a short text."""
    real = attention_dispatch.dispatch_attention_fn

    def ragged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kw: Any) -> torch.Tensor:
        if k.shape[1] == keys:
            v = v.clone()
            v[:, rows] = 0
        return real(q, k, v, **kw)

    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", ragged)
    said = attention._trial("native", CPU, torch.bfloat16, 128)
    assert said is not None and f"300 queries and {keys} keys" in said


def test_applying_changes_this_network_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    math = replace(attention.KERNELS["sdpa"], backend="_native_math")
    monkeypatch.setitem(attention.KERNELS, "sdpa", math)
    network = open_wan(make_tiny_wan(tmp_path)).load_transformer()
    before, _ = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    with caplog.at_level(logging.WARNING):
        attention.apply(network, "sdpa")
    assert {m.processor._attention_backend.value for m in (b.attn1 for b in network.blocks)} == {
        "_native_math"
    }
    assert attention_dispatch._AttentionBackendRegistry.get_active_backend()[0] == before
    assert not caplog.records


@pytest.mark.parametrize("fold_first", [True, False])
def test_folded_text_keeps_its_mask(tmp_path: Path, fold_first: bool) -> None:
    model = open_wan(make_tiny_wan(tmp_path))
    text = pad_text([torch.randn(5, 16), torch.randn(3, 16)])
    x_t, sigma = torch.randn(2, 4, 2, 4, 4), torch.tensor([0.9, 0.5])
    with torch.no_grad():
        expected = velocity(model.load_transformer(), x_t, sigma, text)
        network = model.load_transformer()
        steps = [fold_text_padding, lambda n: attention.apply(n, "sdpa")]
        for step in steps if fold_first else reversed(steps):
            step(network)
        got = velocity(network, x_t, sigma, text)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_wheel_of_flash3_does_where_the_usual_package_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = pretend_gpu(monkeypatch, (9, 0))
    missing = {"flash_attn_interface", "fa3_fwd_interface"}
    problem = "is not installed"
    monkeypatch.setattr(
        attention, "_unusable", lambda module: problem if module in missing else None
    )
    monkeypatch.setattr(attention, "_trial", lambda *args: None)
    with pytest.raises(UserError, match=r"FlashAttention 3 is not installed \(pip install fa3-fwd"):
        attention.choose("flash3", device, torch.bfloat16, 128)
    missing.remove("fa3_fwd_interface")
    assert attention.choose("auto", device, torch.bfloat16, 128) == "flash3"

    wheel = types.ModuleType("fa3_fwd_interface")
    wheel.flash_attn_func = lambda *args, **options: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", wheel)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_FLASH_ATTN_3", False)
    monkeypatch.setattr(attention_dispatch, "flash_attn_3_func", None)
    attention._lend_flash3()
    assert attention_dispatch.flash_attn_3_func is wheel.flash_attn_func
    with attention._asked_directly("_flash_3"):  # diffusers takes it for installed now
        pass
