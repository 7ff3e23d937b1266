"""Metering with remembered shapes gives the bytes and operations of metering without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distill.planning import metering, remembered_shapes
from distill.planning.metering import MemoryMeter, Pass, meter_decoding, meter_pass
from distill.planning.model_meter import count_operations
from distill.planning.remembered_shapes import remembered
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.networks.gradient_checkpointing import Checkpointing


def always_run(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [False, "selective"])
def test_a_pass_takes_the_same_memory(monkeypatch: pytest.MonkeyPatch, kind: Checkpointing) -> None:
    model = open_wan("sprites")
    latents = model.latent_shape(32, 32, 17)
    what = Pass(latents, 2, torch.bfloat16, text_rows=12, checkpointing=kind, compiled=True)

    def measured() -> tuple[object, ...]:
        made = meter_pass(model, what), meter_decoding(model, latents)
        return *made, count_operations(model, latents, 12, 2)

    first, second = measured(), measured()
    monkeypatch.setattr(metering, "remembered", always_run)
    monkeypatch.setattr(remembered_shapes, "remembered", always_run)
    assert first == second == measured()


def test_other_shapes_strides_types_and_arguments_are_other_calls() -> None:
    add, mean = torch.ops.aten.add.Tensor, torch.ops.aten.mean.dim
    a, b = torch.empty(4, 6, device="meta"), torch.empty(6, 4, device="meta").t()
    for _ in range(2):
        assert remembered(add, (a, a), {}).stride() == (6, 1)
        assert remembered(add, (b, b), {}).stride() == (1, 4)
        assert remembered(add, (a.half(), a.half()), {}).dtype is torch.float16
        assert remembered(add, (a[:2], a[:2]), {}).shape == (2, 6)
        assert remembered(mean, (a, [0]), {}).shape == (6,)
        assert remembered(mean, (a, [0], True), {}).shape == (1, 6)
        assert remembered(mean, (a, [1]), {}).shape == (4,)
    assert remembered(add, (a, a), {}) is not remembered(add, (a, a), {})


def test_views_work_in_place_and_data_are_run() -> None:
    x = torch.empty(4, 6, device="meta")
    for _ in range(2):
        view = remembered(torch.ops.aten.t.default, (x,), {})
        assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
        assert remembered(torch.ops.aten.mul_.Tensor, (x, x), {}) is x
        one = torch.ones(2)
        assert remembered(torch.ops.aten.add.Tensor, (one, one), {}).tolist() == [2, 2]


def test_a_second_pass_computes_no_shape_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def product() -> int:
        meter = MemoryMeter()
        with meter:
            x = torch.empty(64, 64, device="meta")
            for _ in range(3):
                x = (x @ x).relu()
        return meter.peak

    expected = product()
    ran: list[object] = []
    described = remembered_shapes._described
    monkeypatch.setattr(remembered_shapes, "_described", lambda *a: ran.append(a) or described(*a))
    assert product() == expected
    assert ran == []
