from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tools.counting.count_passes import PassCounter, count_decodes, size


def test_each_operation_reads_and_writes_its_tensors_once() -> None:
    x, row = torch.randn(10, 20), torch.randn(20)
    with PassCounter() as counter:
        y = x + row  # 200 + 20 read, 200 written
        y.mul_(2)  # 200 read and written
        torch.add(x, x, out=y)  # 2 x 200 read, 200 written
        y.copy_(row.expand(10, 20))  # 20 read, 200 written
        y.t()[:3].unsqueeze(0)
        torch.empty(50)
        F.pad(y, (1, 1))  # 200 read, 220 written twice
        x @ x.t()
    assert counter.bytes["add"] == 4 * (420 + 600)
    assert counter.bytes["mul_"] == 4 * 400
    assert counter.bytes["copy_"] == 4 * 220
    assert counter.bytes["constant_pad_nd"] == 4 * (200 + 2 * 220)
    summary = counter.summary()
    assert summary["launches"] == 6 and summary["terabytes"] == 4 * (1020 + 400 + 220 + 640) / 1e12
    assert size(row.expand(10, 20)) == 80


def test_a_bias_of_a_convolution_is_counted_apart() -> None:
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 1, 1)
    with PassCounter() as counter:
        F.conv2d(x, weight)
        F.conv2d(x, weight, torch.randn(3))
    summary = counter.summary()
    assert summary["by_operation"]["convolution"] == {"launches": 2, "terabytes": 0}
    assert summary["bias_launches"] == 1 and summary["bias_terabytes"] == 2 * 48 * 4 / 1e12


def test_a_fused_operation_is_one_launch() -> None:
    def twice(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(x + y + y)

    x, out = torch.ones(10), torch.empty(10)
    with PassCounter() as counter:
        counter.fused(twice, writes=2)(x, x, out)
        counter.fused(torch.Tensor.add_, writes=0)(x, out)
    assert (out == 3).all() and (x == 4).all()
    assert counter.bytes == {"twice": 120, "add_": 120}
    assert sum(counter.launches.values()) == 2


@pytest.mark.slow
def test_the_decode_stays_within_its_passes() -> None:
    """480x832, 81 frames: at most 1.3 TB and 3,000 launches; diffusers needs more than twice."""
    found = count_decodes(480, 832, 81, frames_at_once=(2,))
    stock, ours = found["diffusers"], found["compiled, 2 at once"]
    assert stock["launches"] > 7900 and stock["terabytes"] > 2.8
    assert ours["launches"] <= 2000 and ours["terabytes"] <= 0.7
    eager = found["eager, 2 at once"]
    assert eager["launches"] < 3200 and eager["terabytes"] < 1.4
    assert found["diffusers"]["bias_terabytes"] > ours["bias_terabytes"]
