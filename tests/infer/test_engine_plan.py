"""Options are settled for a machine, and what cannot run there is refused with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infer.engine_plan import device_of, make_plan, present_device, torch_dtype, why_not_quantize
from infer.options import Lora, Options
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import make_tiny_cogvideox

CPU = Options(device="cpu")


def test_a_cpu_runs_in_float32_uncompiled_and_fused() -> None:
    plan = make_plan(open_wan("sprites"), CPU, (32, 32, 9))
    assert plan.device.type == "cpu" and plan.dtype == plan.text_dtype == torch.float32
    assert plan.fuse_qkv and not plan.compile and not plan.fitted


def test_the_text_encoder_runs_as_the_teacher_did() -> None:
    plan = make_plan(open_wan("sprites"), CPU, None, teacher_dtype="bfloat16")
    assert (plan.dtype, plan.text_dtype) == (torch.float32, torch.bfloat16)
    half = make_plan(open_wan("sprites"), replace(CPU, dtype="fp16"), None)
    assert (half.dtype, half.text_dtype) == (torch.float16, torch.bfloat16)  # umT5 overflows


def test_unmerged_adapters_and_shared_videos_leave_the_projections_apart() -> None:
    model = open_wan("sprites")
    adapted = replace(CPU, loras=(Lora(Path("a.safetensors")),), merge_lora=False)
    assert not make_plan(model, adapted, None).fuse_qkv
    shared = make_plan(model, CPU, None, ranks=Ranks(size=2))
    assert not shared.fuse_qkv and shared.memory_mode.tile_vae


def test_processes_tile_only_what_they_share(tmp_path: Path) -> None:
    """CogVideoX's first process decodes alone, and tiles would change its frames."""
    model = open_model(make_tiny_cogvideox(tmp_path / "model"))
    assert not make_plan(model, CPU, None, ranks=Ranks(size=2)).memory_mode.tile_vae
    asked = make_plan(model, replace(CPU, tile_vae=True), None, ranks=Ranks(size=2))
    assert asked.memory_mode.tile_vae


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device: 'gpu' is not a device; use cpu, cuda or cuda:1"),
        ({"dtype": "fp8"}, "dtype: 'fp8' is unknown; use bf16, fp16, fp32"),
        ({"offload": True}, "offload: needs a CUDA device, and this is cpu"),
        ({"quantize": "int4"}, "quantize: 'int4' is unknown; use none, fp8"),
        ({"max_memory_gib": 0.0}, "max_memory_gib: 0 is not positive"),
        (
            {"quantize": "fp8-storage", "loras": (Lora(Path("a")),), "merge_lora": False},
            "quantize: LoRA layers stay beside the weights; add --merge-lora",
        ),
    ],
)
def test_what_cannot_run_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(open_wan("sprites"), replace(CPU, **options), (32, 32, 9))


def test_names_become_types_and_devices() -> None:
    assert torch_dtype("float32") == torch_dtype("torch.float32") == torch.float32
    assert torch_dtype("bf16") == torch_dtype(torch.bfloat16) == torch.bfloat16
    assert device_of("cuda:1") == torch.device("cuda", 1) and device_of(None).type == "cpu"
    assert why_not_quantize("fp8-storage", torch.device("cpu")) is None


def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert present_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"cuda:99 is not there, because PyTorch sees \d+ CUDA"):
        present_device("cuda:99")
