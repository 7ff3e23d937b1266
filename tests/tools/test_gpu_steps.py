"""Computations of the GPU check's steps: kinds of kernels, errors, estimates, weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infer.options import Options
from infer.vae.decoder import DecodeSettings
from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.networks import attention
from tools.gpu_check import supervisor
from tools.gpu_check.context import Context, relative_difference, tf32
from tools.gpu_check.report import Step
from tools.gpu_check.steps import bundled, forward, limits, vae, video
from tools.gpu_check.steps.attention import sampled_error
from tools.gpu_check.steps.kernel_table import kind_of
from tools.models.random_wan import PROMPT, RandomWan, open_random_wan

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_256x128_64x4_2x1_v_bz_coopA_bias_TNT", "product"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu>", "product"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128>>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", "attention"),
        ("sm80_xmma_fprop_implicit_gemm_tf32f32_cudnn", "convolution"),
        ("triton_poi_fused_addmm_gelu_view_3", "elementwise"),
        ("triton_red_fused_add_native_layer_norm_scaled_dot_product_attention_1", "elementwise"),
        ("triton_tem_fused_addmm_7", "product"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add>", "elementwise"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
    ],
)
def test_kinds_of_kernels(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_an_error_in_the_last_tile_is_seen() -> None:
    """The sampled rows have the first and the last one, where kernels go wrong."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 700, 3, 16, generator=generator) for _ in range(3))
    right = attention.attend("sdpa", q, k, v)
    assert sampled_error(right, q, k, v) < 1e-6
    for row in (0, 699):
        wrong = right.clone()
        wrong[:, row] += 3
        assert sampled_error(wrong, q, k, v) > 2e-2, row


def test_relative_difference_by_hand() -> None:
    found = torch.tensor([3.0, 4.5])
    assert relative_difference(found, torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def test_tf32_is_put_back() -> None:
    before = torch.backends.cudnn.allow_tf32
    with tf32(not before):
        assert torch.backends.cudnn.allow_tf32 is not before
    assert torch.backends.cudnn.allow_tf32 is before


def test_estimates_follow_the_shape_and_the_measured_rate() -> None:
    """One forward pass at 14B is 1,678 TFLOP, at 75 % of the rate of a product."""
    full = Context("14b", (480, 832, 81), torch.device("cuda"), {"flops": 700e12})
    assert full.tokens == 32760
    assert full.forward_s == pytest.approx(1678 / 525, rel=0.01)
    half = replace(full, size=(480, 832, 41))
    assert half.forward_s < 0.5 * full.forward_s


@pytest.fixture(scope="module")
def small() -> RandomWan:
    model = open_random_wan("sprites", CPU)
    return replace(model, transformer_config={**model.transformer_config, "num_layers": 2})


def test_random_networks_run_and_are_equal_each_time(small: RandomWan) -> None:
    network, again = small.load_transformer(), small.load_transformer(torch.bfloat16)
    assert again.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert again.blocks[0].norm2.weight.dtype == torch.float32
    for name, weight in network.named_parameters():
        other = again.get_parameter(name).float()
        torch.testing.assert_close(weight, other, atol=1e-3, rtol=1e-2)
    encoder = small.load_text_encoder(torch.float32)
    (rows,) = encoder.rows([PROMPT])
    assert rows.shape[1] == small.text_dim and rows.isfinite().all()
    x_t = torch.randn(1, *small.latent_shape(32, 32, 9))
    with torch.no_grad():
        out = velocity(network, x_t, torch.tensor([0.5]), pad_text([rows]))
    assert out.isfinite().all() and 0.01 < out.std() < 100
    vae = small.load_vae()
    assert all(not p.requires_grad for p in vae.parameters())
    frames = vae.decode(x_t, return_dict=False)[0]
    assert frames.isfinite().all() and frames.std() > 0


def test_random_weights_come_part_by_part(small: RandomWan) -> None:
    """As the engine prepares them: a part is whole when it is shown, later ones are empty."""
    shown: list[str] = []

    def on_part(name: str, part: Any) -> None:
        shown.append(name)
        if name:
            assert not any(p.is_meta for p in part.parameters())
        else:
            assert all(p.is_meta for p in part.blocks.parameters())
            assert not part.patch_embedding.weight.is_meta

    network = small.load_transformer(torch.float32, "cpu", on_part)
    assert shown == ["", "blocks.0", "blocks.1"]
    assert not any(p.is_meta for p in network.parameters())


class PretendedGpu(Context):
    """The CPU, with the branches of a GPU taken."""

    @property
    def cuda(self) -> bool:
        return True

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
    def nothing(*_: Any) -> None: ...

    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, nothing)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 4 * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (70 * 2**30, 75 * 2**30))
    monkeypatch.setitem(limits.SIDE, "cuda", 64)
    return PretendedGpu("sprites", (32, 32, 9), CPU, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", [limits, forward, video, vae, bundled], ids=lambda module: module.__name__[16:]
)
def test_the_branches_of_a_gpu_run(
    module: Any, pretended: PretendedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peaks, ceilings and tables are filled where there is a GPU; compiled rows left out."""
    eager = [forward.Variant("stock, eager", None)]
    eager.append(forward.Variant("engine, as it comes", Options(device=CPU, compile=False)))
    monkeypatch.setattr(forward, "variants", lambda context: eager)
    monkeypatch.setattr(vae, "VARIANTS", (vae.VARIANTS[0], vae.Variant("engine", DecodeSettings())))
    report = supervisor.begin(tmp_path, 600, "sprites", None, ["limits"])
    step = Step(report, module.__name__.rpartition(".")[2])
    module.run(pretended, step)
    assert not [row for row in step.rows.values() if "error" in row], step.rows
    rows = step.rows
    if module is limits:
        assert set(step.data["ceilings"]) >= {"flops", "bandwidth", "flops_bf16", "flops_tf32"}
    elif module is forward:
        assert rows["engine, as it comes"]["peak_gib"] == rows["stock, eager"]["peak_gib"] == 3
        assert rows["engine, as it comes"]["difference_to_stock"] < 1e-5
        assert step.data["times_faster_than_stock_eager"] > 0
    elif module is video:
        (row,) = rows.values()
        assert row["beside_pytorch_gib"] == 1 and row["measured_gib"]["denoise"] == 4
        assert row["memory_ratio"]["decode"] == 4 / row["needed_gib"]["decode"]
    elif module is vae:
        assert rows["stock diffusers"]["tflop"] > 0 and rows["engine"]["levels_max"] <= 1
    else:
        assert rows["float32, TF32 off"]["latents_max_difference"] < 1e-5
