"""The memory model against what is measured, and the ways it picks for 14B."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from distill.planning.metering import Pass, meter_forward
from infer.engine_plan import make_plan, out_of_memory
from infer.memory_mode import (
    MemoryMode,
    Workload,
    _activations,
    _decoding,
    choose_memory_mode,
    needed_gib,
    sizes_of,
)
from infer.options import Options
from lightx2v_sgmd.families.text_rows import TEXT_LENGTH
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.system.errors import UserError
from tests.profiling import peak_growth

BIG = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
SMALL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def work(
    hub_id: str = BIG, size: tuple[int, int, int] = (480, 832, 81), batch: int = 1
) -> Workload:
    return Workload(open_wan(hub_id), *size, batch=batch, bytes_each=2, cuda=True)


def test_the_parts_of_wan_14b_are_counted() -> None:
    sizes = sizes_of(open_wan(BIG))
    assert 14.2e9 < sizes.linears + sizes.rest < 14.4e9
    assert sizes.linears > 0.97 * (sizes.linears + sizes.rest)
    assert 340e6 < sizes.block < 360e6
    assert 5.6e9 < sizes.text_encoder < 5.75e9
    assert 120e6 < sizes.vae < 130e6


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (140, MemoryMode()),
        (40, MemoryMode(one_at_a_time=True)),
        (24, MemoryMode(offload=True)),
        (16, MemoryMode(offload=True, one_at_a_time=True)),
        (8.5, MemoryMode(offload=True, one_at_a_time=True, text_on_cpu=True, frames_at_once=1)),
    ],
)
def test_14b_fits_into(limit: float, expected: MemoryMode) -> None:
    memory_mode = choose_memory_mode(work(), limit, MemoryMode(), ("fp8", "int8", "fp8-storage"))
    assert memory_mode == expected
    assert max(needed_gib(work(), memory_mode).values()) <= limit


def test_every_saving_saves() -> None:
    usual = needed_gib(work(), MemoryMode())
    for change, stage in (
        (MemoryMode(quantize="fp8"), "denoise"),
        (MemoryMode(offload=True), "denoise"),
        (MemoryMode(one_at_a_time=True), "denoise"),
        (MemoryMode(tile_vae=True), "decode"),
        (MemoryMode(text_on_cpu=True), "text"),
    ):
        assert needed_gib(work(), change)[stage] < usual[stage] - 1, change
    assert max(needed_gib(work(SMALL), MemoryMode()).values()) < max(usual.values()) - 20
    assert needed_gib(work(batch=2), MemoryMode())["denoise"] > usual["denoise"] + 3


def test_what_was_asked_for_stays() -> None:
    asked = MemoryMode(quantize="fp8", tile_vae=True)
    assert choose_memory_mode(work(), 80, asked, ("int8",)) == asked
    memory_mode = choose_memory_mode(work(), 16, asked, ())
    assert memory_mode.quantize == "fp8" and memory_mode.tile_vae


def test_rounding_comes_after_everything_exact() -> None:
    """Four videos at once, whose intermediate values are what cannot be saved."""
    exact = MemoryMode("none", True, True, True, True)
    least = max(needed_gib(work(batch=4), exact).values())
    assert (
        choose_memory_mode(work(batch=4), least, MemoryMode(), ("fp8-storage",)).quantize == "none"
    )
    memory_mode = choose_memory_mode(work(batch=4), least - 0.5, MemoryMode(), ("fp8-storage",))
    assert memory_mode.quantize == "fp8-storage"


def test_too_little_says_how_much() -> None:
    with pytest.raises(
        UserError,
        match=r"max_memory_gib: 3 is too little for 480x832, 81 frames: "
        r"\d\.\d\d GiB is the least that is needed \(with .*--offload",
    ):
        choose_memory_mode(work(), 3, MemoryMode(), ())
    small = Workload(open_wan("sprites"), 32, 32, 9, 1, 4, cuda=False)
    with pytest.raises(UserError, match=r"frames: 0\.0\d+ GiB is the least"):
        choose_memory_mode(small, 0.001, MemoryMode(), ())


def test_on_a_cpu_the_weights_may_become_bfloat16() -> None:
    model, size = open_wan(BIG), (480, 832, 81)
    asked = replace(work(), bytes_each=4, cuda=False)
    least = max(needed_gib(asked, MemoryMode(one_at_a_time=True, tile_vae=True)).values())
    cpu = torch.device("cpu")
    plan = make_plan(model, Options(device=cpu, max_memory_gib=0.8 * least), size)
    assert (
        plan.dtype == torch.bfloat16
        and plan.memory_mode.half
        and plan.memory_mode.quantize == "none"
    )
    roomy = Options(device=cpu, tile_vae=True, max_memory_gib=1000.0)
    assert plan.fitted and not make_plan(model, roomy, size).fitted
    kept = Options(device=cpu, max_memory_gib=0.8 * least, dtype=torch.float32)
    assert make_plan(model, kept, size).memory_mode.quantize != "none"
    with pytest.raises(UserError, match="too little"):
        make_plan(model, Options(device=cpu, max_memory_gib=1), size)


def test_running_out_says_what_would_do(shared_student: Path) -> None:
    plan = make_plan(open_wan(shared_student), Options(device="cpu"), None)
    error = out_of_memory(open_wan(BIG), plan, (720, 1280, 81), 2, "denoising")
    assert "2 x 720x1280, 81 frames needs about" in str(error)
    assert "--batch 1 with" in str(error) and "GiB" in str(error).split("needs only")[1]


@pytest.mark.parametrize(
    ("heads", "ffn", "dtype"),
    [(5, 1728, torch.bfloat16), (4, 3072, torch.bfloat16), (4, 1024, torch.float32)],
)
def test_the_denoising_formula(heads: int, ffn: int, dtype: torch.dtype) -> None:
    network = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=128, ffn_dim=ffn, num_layers=1, text_dim=64
    ).to(dtype)
    config = dict(network.config)
    model = WanModel("x", config, {}, open_wan("sprites").source)
    asked = Workload(model, 256, 256, 17, 1, dtype.itemsize, cuda=False)
    x_t = torch.zeros(1, 16, 5, 32, 32, dtype=dtype)
    text = torch.zeros(1, 16, 64, dtype=dtype)
    with torch.no_grad():
        got = peak_growth(lambda: network(x_t, torch.tensor([500.0]), text))
    assert 0.7 < _activations(asked, dtype.itemsize) / got < 1.5


@pytest.mark.parametrize(("hub_id", "dtype"), [(BIG, torch.bfloat16), (SMALL, torch.float32)])
def test_the_formula_bounds_what_the_plan_of_training_meters(
    hub_id: str, dtype: torch.dtype
) -> None:
    """Decision 024: generation has no time to meter, so its formula is held to the meter here."""
    asked = replace(work(hub_id), bytes_each=dtype.itemsize)
    latents = asked.model.latent_shape(asked.height, asked.width, asked.num_frames)
    metered = meter_forward(asked.model, Pass(latents, 1, dtype, TEXT_LENGTH, False))
    assert 1 <= _activations(asked, dtype.itemsize) / metered < 1.25


def test_tiles_are_a_way_to_decode_in_less_memory() -> None:
    asked, tiles = work(size=(720, 1280, 81)), MemoryMode(tile_vae=True)
    assert _decoding(asked, tiles) < 0.3 * _decoding(asked, MemoryMode())
    assert _decoding(asked, MemoryMode(frames_at_once=1)) < 0.8 * _decoding(asked, MemoryMode())
    small = replace(asked, height=256, width=256)
    assert _decoding(small, tiles) == _decoding(small, MemoryMode())


@pytest.mark.parametrize(
    ("free", "half", "apart", "streamed"),
    [(64, False, False, False), (16, False, True, False), (9, False, False, True)],
)
def test_the_real_sizes_fit_into_the_memory_that_a_cpu_has(
    free: float, half: bool, apart: bool, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infer.engine_plan.available_gib", lambda: free)
    model, size = open_wan(SMALL), (128, 128, 5)
    plan = make_plan(model, Options(device="cpu"), size)
    assert plan.text_dtype == torch.bfloat16  # umT5-XXL, whose training nothing tells
    mode = plan.memory_mode
    assert (mode.half, mode.one_at_a_time, mode.stream_text) == (half, apart, streamed)
    monkeypatch.setattr("infer.engine_plan.available_gib", lambda: 5.5)
    small = make_plan(model, Options(device="cpu"), size)
    assert small.memory_mode.stream_text and small.fitted
    monkeypatch.setattr("infer.engine_plan.available_gib", lambda: 1.0)
    monkeypatch.setattr("infer.engine_plan.swap_gib", lambda: 4.5)
    assert make_plan(model, Options(device="cpu"), size).memory_mode.stream_text
    monkeypatch.setattr("infer.engine_plan.swap_gib", lambda: 0.0)
    with pytest.raises(
        UserError,
        match=r"^out of memory: 128x128, 5 frames needs \d\.\d+ GiB at least \(with .*--stream-text"
        r".*\), and 1 GiB are available on cpu; close other programs",
    ):
        make_plan(model, Options(device="cpu"), size)
