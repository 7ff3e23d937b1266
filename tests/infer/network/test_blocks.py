"""The network computes the same after a plan's changes to it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infer.network import blocks
from infer.network.blocks import fuse_qkv, mend_rows_of_zeros, quantize
from infer.network.loading import offload
from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import why_unusable
from tests.students import load_student
from tests.tiny import image_transformer

PROMPT = "a red circle moving left"


@pytest.fixture(scope="module")
def plain(shared_student: Path) -> torch.Tensor:
    """The latents of the unfused network in float32."""
    return load_student(shared_student, fuse_qkv=False).generate(PROMPT, 3, decode=False).latents


def latents(folder: Path, **options: Any) -> torch.Tensor:
    return load_student(folder, **options).generate(PROMPT, 3, decode=False).latents


def test_fused_projections_give_the_same(shared_student: Path, plain: torch.Tensor) -> None:
    torch.testing.assert_close(latents(shared_student), plain, atol=1e-5, rtol=0)


def test_fusing_keeps_one_copy_of_the_weights(shared_student: Path) -> None:
    network = open_wan(shared_student).load_transformer()
    before = sum(p.numel() for p in network.parameters())
    for block in network.blocks:
        fuse_qkv(block)
    assert sum(p.numel() for p in network.parameters()) == before


def test_fusing_keeps_one_copy_of_an_images_weights() -> None:
    torch.manual_seed(0)
    network = image_transformer().requires_grad_(False)
    x_t, text, image = torch.randn(1, 16, 1, 4, 4), torch.randn(1, 512, 8), torch.randn(1, 257, 8)
    arguments = (x_t, torch.tensor([500.0]), text, image)
    with torch.no_grad():
        expected = network(*arguments, return_dict=False)[0]
        before = sum(p.numel() for p in network.parameters())
        fuse_qkv(network.blocks[0])
        got = network(*arguments, return_dict=False)[0]
    assert sum(p.numel() for p in network.parameters()) == before
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_large_matrix_is_quantised_in_pieces_to_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers and scales are those of the whole matrix quantised at once."""
    api = pytest.importorskip("torchao.quantization.quant_api")
    monkeypatch.setattr(api, "_check_hardware_support", lambda granularity: None)
    made: list[Any] = []
    for large in (2**62, 2**20):
        monkeypatch.setattr(blocks, "_LARGE", large)
        torch.manual_seed(0)
        layer = torch.nn.Linear(1024, 1040, dtype=torch.bfloat16).requires_grad_(False)
        layer.weight[3] = 0
        quantize(torch.nn.Sequential(layer), kind)
        made.append(layer.weight)
    whole, pieces = made
    assert type(whole.data) is type(pieces.data) and whole.shape == pieces.shape
    names, about = whole.data.__tensor_flatten__()
    assert pieces.data.__tensor_flatten__() == (names, about)
    for name in names:
        one, other = (getattr(weight.data, name) for weight in made)
        assert one.stride() == other.stride()
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), name


def test_fp8_storage_is_near(shared_student: Path, plain: torch.Tensor) -> None:
    student = load_student(shared_student, quantize="fp8-storage")
    block = student.transformer.blocks[0]
    assert block.ffn.net[2].weight.dtype == torch.float8_e4m3fn
    assert student.transformer.patch_embedding.weight.dtype == torch.float32
    got = student.generate(PROMPT, 3, decode=False).latents
    assert 1e-4 < (got - plain).abs().max() < 0.3
    assert block.ffn.net[2].weight.dtype == torch.float8_e4m3fn  # cast back after the forward


def test_rows_of_zeros_stay_zeros_in_fp8() -> None:
    """As torchao leaves them: the scale 0, and 0 / 0 as the numbers."""
    scale = torch.tensor([[0.5], [0.0]])
    rows = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    weight = SimpleNamespace(qdata=(rows / scale).to(torch.float8_e4m3fn), scale=scale)
    assert weight.qdata.float().isnan().any()
    mend_rows_of_zeros(weight)
    assert torch.equal(weight.qdata.float() * weight.scale, rows)


@pytest.mark.gpu
def test_fp8_of_zeros_is_zero() -> None:
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    layer = torch.nn.Linear(64, 32, bias=False, device="cuda", dtype=torch.bfloat16)
    layer.requires_grad_(False).weight[5] = 0
    x = torch.randn(48, 64, device="cuda", dtype=torch.bfloat16)
    x[3] = 0
    expected = layer(x)
    network = torch.nn.Sequential(layer)
    quantize(network, "fp8")
    got = network(x)
    assert (got[3] == 0).all() and (got[:, 5] == 0).all()
    assert (got - expected).norm() < 0.1 * expected.norm()


def test_int8_weights_are_nearer(shared_student: Path, plain: torch.Tensor) -> None:
    pytest.importorskip("torchao")
    student = load_student(shared_student, quantize="int8")
    weight = student.transformer.blocks[0].ffn.net[2].weight
    assert type(weight).__module__.startswith("torchao")
    assert type(student.transformer.proj_out.weight) is torch.nn.Parameter
    got = student.generate(PROMPT, 3, decode=False).latents
    assert 1e-5 < (got - plain).abs().max() < 0.1


@pytest.mark.skipif(why_unusable("torchao") is None, reason="torchao works here")
def test_int8_without_torchao_says_what_to_install(shared_student: Path) -> None:
    with pytest.raises(
        UserError, match="int8 needs the package torchao, which is (not )?installed"
    ):
        load_student(shared_student, quantize="int8")


@pytest.mark.gpu
def test_fp8_is_near(shared_student: Path, plain: torch.Tensor) -> None:
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    got = latents(shared_student, quantize="fp8", device="cuda")
    assert 1e-4 < (got - plain).abs().max() < 0.5


def test_fp8_and_offload_need_a_gpu(shared_student: Path) -> None:
    with pytest.raises(UserError, match="quantize: fp8 needs"):
        load_student(shared_student, quantize="fp8")
    with pytest.raises(UserError, match="offload: needs a CUDA device, and this is cpu"):
        load_student(shared_student, offload=True)


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.usefixtures("exact_float32")
def test_group_offload_computes_the_same(shared_student: Path, name: str) -> None:
    """On the CPU the hooks move nothing; on a GPU the blocks come and go."""
    device = torch.device(name)
    model = open_wan(shared_student)
    x_t, sigma = torch.randn(1, 4, 3, 8, 8, device=device), torch.tensor([0.9], device=device)
    text = pad_text([torch.randn(5, 16)]).to(device)
    network = model.load_transformer().eval()
    away = model.load_transformer().eval()
    offload(away, device)
    with torch.no_grad():
        expected = velocity(network.to(device), x_t, sigma, text)
        for _ in range(2):  # the first forward learns the order, the second one prefetches
            torch.testing.assert_close(velocity(away, x_t, sigma, text), expected)


@pytest.mark.gpu
def test_offloaded_blocks_wait_in_the_main_memory(shared_student: Path) -> None:
    student = load_student(shared_student, offload=True, one_at_a_time=True, device="cuda")
    student.generate(PROMPT, 3)
    assert student.transformer.blocks[0].ffn.net[2].weight.device.type == "cpu"


@pytest.mark.slow
def test_parts_take_turns(shared_student: Path, plain: torch.Tensor) -> None:
    student = load_student(shared_student, one_at_a_time=True, tile_vae=True)
    made = student.generate(PROMPT, 3)
    torch.testing.assert_close(made.latents, plain, atol=1e-5, rtol=0)
    assert made.frames.shape == (9, 32, 32, 3)
    if student.device.type == "cpu":
        assert "transformer" not in student.parts and "text_encoder" not in student.parts
    assert student.parts.present("vae")
    torch.testing.assert_close(
        student.generate(PROMPT, 3, decode=False).latents, plain, atol=1e-5, rtol=0
    )
    assert not student.parts.present("vae")


def test_compiling_without_a_compiler_is_refused(
    shared_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"compile: needs a C\+\+ compiler on a CPU"):
        load_student(shared_student, compile=True, device="cpu")
