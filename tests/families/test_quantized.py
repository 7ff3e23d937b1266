"""Weights in 8 bits, in the engine and in training, for a tiny model of every family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch import nn

from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.files.tensors.scaled_weights import in_fp8
from lightx2v_sgmd.networks.block_loading import blocks_of
from lightx2v_sgmd.networks.fp8_storage import Fp8Linear
from tests.families.conftest import Tiny
from tests.training import make_trainer

FP8 = torch.float8_e4m3fn


def matrices(network: Any) -> dict[str, nn.Linear]:
    """The linear layers of a network's blocks, by name."""
    return {
        f"{block}.{name}": layer
        for block, module in blocks_of(network).items()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }


@torch.no_grad()
def test_the_engine_runs_the_rounded_weights(tiny: Tiny) -> None:
    """All layers of the blocks are rounded but modulation, which diffusers keeps out of 8 bits."""
    plain, stored = tiny.student(), tiny.student(quantize="fp8-storage")
    for number, expert in enumerate(stored.model.experts):
        held = matrices(stored.loaded.network_of(number))
        eight = [name for name, layer in held.items() if layer.weight.dtype == FP8]
        assert {name.rsplit(".", 1)[-1] for name in eight} >= {"to_q", "to_k", "to_v", "proj"}
        for name, layer in matrices(expert.model.load_transformer()).items():
            assert name in eight or "norm" in name
            kind = FP8 if name in eight else torch.float32
            assert torch.equal(held[name].weight.float(), layer.weight.to(kind).float()), name
    got, exact = tiny.latents(stored), tiny.latents(plain)
    # A number of four significant bits is within a sixteenth; over a network errors cancel.
    assert 1e-4 < (got - exact).norm() / exact.norm() < 0.02


def test_int8_is_nearer(tiny: Tiny) -> None:
    pytest.importorskip("torchao")
    plain, stored = tiny.student(), tiny.student(quantize="int8")
    layers = matrices(stored.transformer).values()
    assert all(type(layer.weight).__module__.startswith("torchao") for layer in layers)
    got, exact = tiny.latents(stored), tiny.latents(plain)
    assert 1e-5 < (got - exact).norm() / exact.norm() < 0.01


def test_adapters_learn_beside_the_rounded_weights(tiny: Tiny, tmp_path: Path) -> None:
    """Losses and gradient norms are those of a teacher whose files hold the rounded weights."""
    rounded, model = copytree(tiny.folder, tmp_path / "rounded"), open_model(tiny.folder)
    for number, expert in enumerate(model.experts):
        network = expert.model.load_transformer().requires_grad_(False)
        for layer in matrices(network).values():
            stored, scale = in_fp8(layer.weight, by_row=True)
            layer.weight.copy_(stored.float() * scale)
        network.save_pretrained(rounded / (model.pipeline.folder + ("_2" if number else "")))
    ours = make_trainer(tiny.job(tmp_path / "ours"))
    plain = replace(tiny, folder=rounded)
    theirs = make_trainer(plain.job(tmp_path / "theirs", "teacher.quantize=none"))
    kinds = {
        type(layer) for network in ours.strategy.networks.values() for layer in network.modules()
    }
    assert Fp8Linear in kinds
    for iteration in range(2):
        one, other = (trainer.iterate(iteration) for trainer in (ours, theirs))
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
        assert all(norm > 0 for norm in one.grad_norm.values())
