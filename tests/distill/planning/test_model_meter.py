from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distill.planning import model_meter
from distill.planning.metering import PassMemory
from distill.planning.model_meter import ModelMeter, Weights
from lightx2v_sgmd.families.teacher import with_defaults
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.system.resources import config_path


def test_weights_are_counted_by_size() -> None:
    assert Weights.of([100_000, 100_001, 7]) == Weights(200_008, small=100_007, largest=100_001)


def test_the_share_of_adapters_is_that_of_their_shapes() -> None:
    # Of each layer of n inputs and m outputs, A has 64 n numbers and B 64 m. A block has eight
    # layers of 1536 to 1536 numbers and the two of the feed-forward, 1536 to 8960 and back.
    settings = ["student={train: lora}", "fake_score={train: full}"]
    job = load_job(config_path("wan2.1_t2v_1.3b_sgmd.yaml"), settings)
    model = open_wan(job.teacher.path)
    job, meter = with_defaults(job, model), ModelMeter(model)
    expected = 30 * 64 * (8 * 2 * 1536 + 2 * (1536 + 8960))
    assert meter.trained(job)["student"].count == expected
    shares = meter.shares(job)
    assert shares == {"student": expected / meter.weights.count, "fake_score": 1.0}


def test_a_pass_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measure(model: Any, what: Any) -> PassMemory:
        asked.append(what)
        return PassMemory(len(asked), 0, 0, 0)

    monkeypatch.setattr(model_meter, "meter_pass", measure)
    job = load_job(config_path("sprites_sgmd.yaml"))
    meter = ModelMeter(open_wan(job.teacher.path))
    first = meter.passes(job, 1, False, False)
    assert meter.passes(job, 1, False, False) is first and len(asked) == 1
    longer = replace(job, video=replace(job.video, num_frames=5))
    assert meter.passes(longer, 1, False, False) is not first
    assert meter.passes(job, 2, False, False) is not first
    assert meter.passes(job, 1, True, False) is not first and len(asked) == 4
