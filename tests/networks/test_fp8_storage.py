"""Frozen layers in 8 bits: what they compute, what they keep, and what learns beside them."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.tensors.scaled_weights import in_fp8
from lightx2v_sgmd.networks.fp8_storage import Fp8Linear, store_in_fp8
from lightx2v_sgmd.parallel import STUDENT, TEACHER
from tests.training import make_job, make_trainer

ADAPTERS = ("student.train=lora", "fake_score.train=lora", "teacher.quantize=fp8-storage")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_that_of_its_rounded_weights(dtype: torch.dtype) -> None:
    """Output and gradient, under autocast and without."""
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 24).requires_grad_(False), torch.randn(2, 5, 48)
    layer.weight[3] = 0
    stored, scale = in_fp8(layer.weight, by_row=True)
    rounded = (stored.to(dtype) * scale.to(dtype)).requires_grad_(False)
    with torch.no_grad():
        assert (rounded.float() - layer.weight).norm() < 0.04 * layer.weight.norm()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = Fp8Linear(layer)(ours)
        expected = F.linear(theirs.to(dtype), rounded, layer.bias.to(dtype))
    assert output.dtype == dtype and torch.equal(output, expected)
    pairs = ((output, ours), (expected, theirs))
    assert torch.equal(*(torch.autograd.grad(y.sum(), v)[0] for y, v in pairs))


def test_a_pass_keeps_the_matrix_in_8_bits() -> None:
    layer = Fp8Linear(nn.Linear(48, 24).requires_grad_(False))
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(5, 48, requires_grad=True))
    assert {(t.dtype, tuple(t.shape)) for t in kept} == {
        (torch.float8_e4m3fn, (24, 48)),
        (torch.float32, (24, 1)),
    }


def test_a_block_keeps_what_is_no_matrix(tiny_teacher: Path) -> None:
    network = open_wan(tiny_teacher).load_transformer().requires_grad_(False)
    before = dict(network.blocks[0].state_dict())
    store_in_fp8(network.blocks[0])
    after = network.blocks[0].state_dict()
    eight = {name for name, p in after.items() if p.dtype == torch.float8_e4m3fn}
    assert eight == {n for n, p in before.items() if n.endswith(".weight") and p.ndim == 2}
    assert all(torch.equal(after[n], p) for n, p in before.items() if n not in eight)


def test_roles_share_the_stored_matrices(tiny_teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, *ADAPTERS))
    networks: Any = trainer.strategy.networks
    teacher, student = networks[TEACHER], networks[STUDENT]
    ours = student.blocks[0].attn1.to_q.base_layer
    theirs = teacher.blocks[0].attn1.to_q
    assert isinstance(theirs, Fp8Linear)
    assert ours.weight is theirs.weight and ours.scale is theirs.scale
    assert trainer.iterate(0).grad_norm[STUDENT] > 0


def test_training_is_that_of_a_teacher_with_rounded_weights(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    """Losses and gradient norms of a model whose files hold the rounded weights."""
    rounded = copytree(tiny_teacher, tmp_path / "rounded")
    network = open_wan(rounded).load_transformer().requires_grad_(False)
    for block in network.blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                stored, scale = in_fp8(layer.weight, by_row=True)
                layer.weight.copy_(stored.float() * scale)
    network.save_pretrained(rounded / "transformer")
    stored_job = make_job(tiny_teacher, tmp_path / "a", *ADAPTERS)
    plain_job = make_job(rounded, tmp_path / "b", *ADAPTERS[:2])
    trainers = [make_trainer(job) for job in (stored_job, plain_job)]
    for iteration in range(2):
        ours, theirs = (trainer.iterate(iteration) for trainer in trainers)
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
