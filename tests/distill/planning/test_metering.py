from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.planning import metering
from distill.planning.metering import MemoryMeter, Pass, meter_pass
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.wan.opening import open_wan
from tests.tiny import make_tiny_cogvideox


def test_meter_counts_what_lives() -> None:
    meter = MemoryMeter()
    with meter, torch.device("meta"):
        x = torch.empty(1000)
        y = (x + 1) * 2
        x.view(10, 100).mul_(3)  # neither a view nor work in place takes memory
        assert (meter.live, meter.peak) == (8000, 12000)
        del x, y
        assert meter.live == 0


@pytest.mark.slow
def test_all_layers_follow_from_four() -> None:
    model = open_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    model = replace(model, transformer_config=model.transformer_config | {"num_layers": 7})
    what = Pass((16, 3, 12, 20), 1, torch.bfloat16, text_rows=8, checkpointing=True)
    predicted = meter_pass(model, what)
    metered = meter_pass(model, replace(what, keeping=True))  # runs all seven
    for name in ("forward", "activations", "backward"):
        assert getattr(predicted, name) == getattr(metered, name), name
    halves = meter_pass(model, replace(what, degree=2))
    assert halves.activations == pytest.approx(predicted.activations / 2, rel=0.1)


def test_decoding_many_frames_follows_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_wan("sprites")
    latents = model.latent_shape(32, 32, 69)
    exact = metering.meter_decoding(model, latents)
    monkeypatch.setattr(metering, "METERED_FRAMES", 12)
    assert metering.meter_decoding(model, latents) == exact
    monkeypatch.setattr(metering, "METERED_FRAMES", 5)  # where layers need more than the video
    assert exact <= metering.meter_decoding(model, latents) < 1.1 * exact


def test_decoding_two_latent_frames_at_a_time_follows_from_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(make_tiny_cogvideox(tmp_path / "m"))
    latents = model.latent_shape(32, 32, 321)
    monkeypatch.setattr(metering, "METERED_FRAMES", latents[1])
    exact = metering.meter_decoding(model, latents)
    monkeypatch.setattr(metering, "METERED_FRAMES", 61)
    assert metering.meter_decoding(model, latents) == pytest.approx(exact, rel=0.01)
