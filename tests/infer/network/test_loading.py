"""Memory of loading and denoising at the published sizes, metered, beside the plan's figures.

The meta device stands for a GPU. No weights are read: the files' shapes and types are the real
ones, and the copier, the fusing, the merging and the quantising are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from distill.planning.metering import fused_attention
from infer import Lora
from infer.engine_plan import EnginePlan
from infer.memory_mode import MemoryMode, Workload, needed_gib, sizes_of
from infer.network import loading
from infer.network.loading import load_network
from infer.options import Options
from lightx2v_sgmd.families.lora.reading import LoraUpdate
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.files.tensors.tensor_copy import PIECE_BYTES
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.host_memory import GIB
from tests.infer.metering import DEVICE, DeviceMeter, metered
from tests.students import load_student
from tests.tiny import make_tiny_wan

BIG = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
SMALL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
SIZE = (480, 832, 81)


def plan_of(memory_mode: MemoryMode, **options: Any) -> EnginePlan:
    half = torch.bfloat16
    chosen = Options(**options)
    return EnginePlan(
        chosen, DEVICE, half, half, "sdpa", memory_mode, False, not memory_mode.offload, None, False
    )


def planned(model: WanModel, memory_mode: MemoryMode) -> dict[str, float]:
    """The plan's figures without what CUDA itself takes."""
    stages = needed_gib(Workload(model, *SIZE, batch=1, bytes_each=2, cuda=True), memory_mode)
    return {stage: gib - 0.8 for stage, gib in stages.items()}


def load(
    model: WanModel, memory_mode: MemoryMode, meter: DeviceMeter, **options: Any
) -> tuple[Any, float, float]:
    """A network, and what it weighs and took at most on its device, in GiB."""
    made = load_network(model, plan_of(memory_mode, **options), Ranks(device=DEVICE))
    return made, meter.live["meta"] / GIB, meter.peak["meta"] / GIB


@pytest.mark.slow
@pytest.mark.parametrize("hub_id", [BIG, SMALL])
@pytest.mark.parametrize("kind", ["none", "fp8-storage", "int8", "fp8"])
def test_loading_takes_the_weights_and_one_block(
    hub_id: str, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From float32 files, as Wan's are on the hub; at most the plan's figure, within 10 %."""
    if kind in ("int8", "fp8"):
        api = pytest.importorskip("torchao.quantization.quant_api")
        monkeypatch.setattr(api, "_check_hardware_support", lambda granularity: None)
    model, memory_mode = open_wan(hub_id), MemoryMode(quantize=kind)
    sizes = sizes_of(model)
    block = 2 * sizes.block / GIB
    with metered(monkeypatch, "F32") as meter:
        _, weights, peak = load(model, memory_mode, meter)
    expected = (sizes.linears * (2 if kind == "none" else 1) + 2 * sizes.rest) / GIB
    assert weights == pytest.approx(expected, rel=0.03)
    assert weights < peak < weights + block
    plan = planned(model, memory_mode)["load"]
    assert peak < plan and plan == pytest.approx(peak, rel=0.1)
    assert meter.peak["cpu"] <= 2 * PIECE_BYTES


def test_a_quantised_14b_loads_on_a_24_gib_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged with a LoRA as well; the whole of it in 16 bits would be 26.7 GiB."""
    layers = {f"blocks.{i}.ffn.net.0.proj": (13824, 5120) for i in range(40)}
    factors = {
        name: (torch.empty(64, width, device="meta"), torch.empty(out, 64, device="meta"))
        for name, (out, width) in layers.items()
    }
    update = LoraUpdate(factors, {})
    monkeypatch.setattr("lightx2v_sgmd.families.lora.updates.read_lora", lambda *lora: update)
    model, memory_mode = open_wan(BIG), MemoryMode(quantize="fp8-storage", one_at_a_time=True)
    with metered(monkeypatch, "F32") as meter:
        _, weights, peak = load(
            model, memory_mode, meter, loras=(Lora(Path("x")),), merge_lora=True
        )
    assert weights < 14 and peak < 15.5
    assert planned(model, memory_mode)["load"] == pytest.approx(peak, rel=0.1)
    assert (
        max(
            planned(
                model, MemoryMode(quantize="fp8-storage", one_at_a_time=True, tile_vae=True)
            ).values()
        )
        < 23
    )


def test_what_is_offloaded_never_meets_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a small network; on the meta device the main memory is real."""
    monkeypatch.setattr(loading, "offload", lambda made, device: None)
    model = open_wan(SMALL)
    model.transformer_config["num_layers"] = 2
    with metered(monkeypatch) as meter:
        made, _, peak = load(model, MemoryMode(offload=True), meter)
    assert made.blocks[1].attn1.to_q.weight.device.type == "cpu"
    assert peak < 0.01
    sizes = sizes_of(model)
    weights = 2 * (sizes.linears + sizes.rest)
    assert weights < meter.peak["cpu"] < 1.05 * (weights + 2 * sizes.block + PIECE_BYTES)


@pytest.mark.slow
@pytest.mark.parametrize("hub_id", [BIG, SMALL])
def test_denoising_takes_what_the_plan_says(hub_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_wan(hub_id)
    with metered(monkeypatch) as meter:
        made, weights, _ = load(model, MemoryMode(one_at_a_time=True), meter)
        x_t = torch.empty(1, *model.latent_shape(*SIZE), device=DEVICE, dtype=torch.bfloat16)
        text = torch.empty(1, 64, model.text_dim, device=DEVICE, dtype=torch.bfloat16)
        meter.start()
        with torch.no_grad(), fused_attention():
            velocity(made, x_t, torch.empty(1, device=DEVICE), text)
    peak = meter.peak["meta"] / GIB
    assert peak - weights > 1
    assert planned(model, MemoryMode(one_at_a_time=True))["denoise"] == pytest.approx(peak, rel=0.1)


def test_long_loads_show_how_far_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for hub_id, said in ((SMALL, True), ("sprites", False)):
        with metered(monkeypatch):
            load_network(open_wan(hub_id), plan_of(MemoryMode()), Ranks(device=DEVICE), quiet=False)
        lines = capsys.readouterr().err.splitlines()
        assert bool(lines) == said
        if said:
            assert lines[0].startswith("loading the network 1/31")
            assert lines[-1].startswith("loading the network 31/31  took")
    with metered(monkeypatch):
        load_network(open_wan(SMALL), plan_of(MemoryMode()), Ranks(device=DEVICE))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("pattern", [False, True])
def test_merged_loras_are_what_peft_computes(tmp_path: Path, pattern: bool) -> None:
    """Ranks and alphas of their own for some layers; differences of other parameters, too."""
    pytest.importorskip("peft")
    base = make_tiny_wan(tmp_path / "base")
    tensors = {"diffusion_model.blocks.1.norm3.diff": torch.randn(48)} if not pattern else {}
    prefix = "transformer." if pattern else "diffusion_model."
    names = (
        {"blocks.0.attn1.to_q": 2, "blocks.1.ffn.net.2": 3}
        if pattern
        else {"blocks.0.self_attn.q": 2, "blocks.1.ffn.2": 3}
    )
    for name, rank in names.items():
        width = 64 if "ffn" in name else 48
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.randn(rank, width) / 5
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.randn(48, rank) / 5
        if not pattern:
            tensors[f"{prefix}{name}.alpha"] = torch.tensor(4.0)
    about = schedule_metadata(Schedule())
    if pattern:
        about["lora_adapter_metadata"] = (
            '{"transformer.r": 2, "transformer.lora_alpha": 3, '
            '"transformer.rank_pattern": {"blocks.1.ffn.net.2": 3}, '
            '"transformer.alpha_pattern": {"ffn.net.2": 7}, '
            '"transformer.target_modules": ["attn1.to_q", "ffn.net.2"]}'
        )
    save_file(tensors, tmp_path / "x.safetensors", metadata=about)
    made = []
    for merge in (False, True, None):
        loras = () if merge is None else (Lora(tmp_path / "x.safetensors", 0.7),)
        student = load_student(
            base,
            device="cpu",
            loras=loras,
            merge_lora=bool(merge),
            assume_schedule="sgmd" if merge is None else None,
        )
        video = student.generate("a red circle", 3, decode=False, height=32, width=32, num_frames=5)
        made.append(video.latents)
    torch.testing.assert_close(made[1], made[0], atol=2e-5, rtol=0)
    assert (made[1] - made[2]).abs().max() > 0.01
