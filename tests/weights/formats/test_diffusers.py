"""Exports in diffusers' layout: the trained weights, as the engine and stock diffusers run them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.stock import run_stock, stock_pipe
from tests.students import load_student
from tests.tiny import WEIGHTS
from tests.weights.conftest import do_export, student_tensors
from weights import DTYPES


def test_engine_diffusers_and_the_trained_weights_agree(
    run: Path, teacher: Path, tmp_path: Path
) -> None:
    out = do_export(run, tmp_path / "student")
    prompts, seeds = ["a red circle", "a blue square moving left"], [3, 4]
    made = load_student(out).generate(prompts, seeds, decode=False)
    stock = run_stock(stock_pipe(out), prompts, seeds)
    torch.testing.assert_close(made.latents, stock, atol=1e-4, rtol=0)

    model = open_wan(teacher)
    network = model.load_transformer()
    network.load_state_dict(student_tensors(teacher, 1020))  # the newest one's moving average
    text = pad_text(model.load_text_encoder(torch.float32).rows(prompts))
    noise = torch.stack(
        [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
    with torch.no_grad():
        trained = rollout(lambda x, s: velocity(network, x, s, text), noise, Schedule())
    torch.testing.assert_close(made.latents, trained, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_values_types_and_metadata(run: Path, teacher: Path, tmp_path: Path, dtype: str) -> None:
    out = do_export(run, tmp_path / "student", dtype=dtype, ema=False)
    expected = student_tensors(teacher, 20)
    stored = load_file(out / WEIGHTS)
    assert stored.keys() == expected.keys()
    kept = {name for name in stored if "norm2" in name or "time_embedder" in name}
    kept |= {name for name in stored if "scale_shift_table" in name}
    for name, tensor in stored.items():
        assert tensor.dtype == (torch.float32 if name in kept else DTYPES[dtype])
        assert torch.equal(tensor, expected[name].to(tensor.dtype))
    with safe_open(out / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    schedule = {
        "timesteps": [1000, 960, 888.889, 727.273],
        "shift": 8.0,
        "base": [1000, 750, 500, 250],
        "solver": "euler",
    }
    assert json.loads(metadata["lightx2v_sgmd"]) == {"schedule": schedule}
    assert not any(key.startswith("modelspec.") for key in metadata)  # configurations say more
    # Stock diffusers loads it in that precision and runs it as the engine does.
    pipe = WanPipeline.from_pretrained(out, torch_dtype=DTYPES[dtype])
    assert pipe.transformer.blocks[0].norm2.weight.dtype == torch.float32
    assert pipe.transformer.blocks[0].ffn.net[2].weight.dtype == DTYPES[dtype]


def test_large_weights_are_sharded(run: Path, tmp_path: Path) -> None:
    whole = do_export(run, tmp_path / "whole")
    out = do_export(run, tmp_path / "student", max_shard_size="100KB")
    shards = sorted(p.name for p in (out / "transformer").glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].startswith("diffusion_pytorch_model-00001-of-")
    assert not (out / WEIGHTS).exists()
    together: dict[str, torch.Tensor] = {}
    for shard in shards:
        assert (out / "transformer" / shard).stat().st_size < 120_000
        together |= load_file(out / "transformer" / shard)
    expected = load_file(whole / WEIGHTS)
    assert together.keys() == expected.keys()
    assert all(torch.equal(together[name], expected[name]) for name in expected)
    made = load_student(out).generate("a red circle", decode=False)
    expected_latents = load_student(whole).generate("a red circle", decode=False).latents
    torch.testing.assert_close(made.latents, expected_latents, atol=1e-5, rtol=0)
    (out / "transformer" / shards[1]).unlink()
    with pytest.raises(UserError, match=f"{shards[1]}: is missing"):
        load_student(out)
