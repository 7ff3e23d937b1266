"""A plan counts discriminators: their heads, and frames that are decoded for them."""

from __future__ import annotations

from typing import Any

import pytest

from distill.planning.model_meter import ModelMeter
from distill.planning.nearest import check_possible
from distill.planning.plan import Machine, make_plan
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.parallel.discriminator import build_heads
from lightx2v_sgmd.system.resources import config_path
from tests.distill.planning.test_shipped_jobs import meter_of


@pytest.mark.slow
def test_decoded_frames_are_planned() -> None:
    """Memory and operations of VAE and vision encoder, shared by the ranks of a video."""
    job = load_job(config_path("wan2.1_t2v_1.3b_adp.yaml"))
    meter = meter_of(job.teacher.path)
    plan = make_plan(job, meter.model, Machine(gpus=8), meter)
    assert plan.memory.peak_phase == "through the pixel discriminator"
    # A VAE of 127 and an encoder of 90 million weights in float32. The encoder is not here yet.
    frozen = plan.memory.always["VAE and vision encoder (SAM's ViT-B)"]
    assert frozen == pytest.approx(4 * (127e6 + 90e6), rel=0.01)
    # A whole decode keeps 499 GiB for its backward pass.
    assert plan.memory.phases[plan.memory.peak_phase]["activations"] < 45 * 2**30
    assert plan.flops["decoded frames"] > 0 and "decoded frames" not in plan.passes
    assert plan.seconds * plan.machine.gpus * 0.4 * 989e12 == pytest.approx(
        sum(plan.flops.values())
    )
    without = load_job(
        config_path("wan2.1_t2v_1.3b_adp.yaml"),
        ["method={name: adp, pixel_weight: 0}"],
    )
    plain = make_plan(without, meter.model, Machine(gpus=8), meter)
    assert plain.memory.peak < plan.memory.peak / 1.5 and "decoded frames" not in plain.flops


def test_heads_are_built_once_for_all_layouts_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of layouts are looked at before a job is planned, and all have the same heads."""
    built: list[object] = []

    def build(*arguments: Any) -> Any:
        built.append(arguments)
        return build_heads(*arguments)

    monkeypatch.setattr("distill.planning.discriminators.build_heads", build)
    job = load_job(config_path("sprites_adp.yaml"), ["parallel.strategy=zero3"])
    model = open_model(job.teacher.path)
    check_possible(job, model, Machine(gpus=8), ModelMeter(model))
    assert len(built) == 1
