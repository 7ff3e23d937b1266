"""The pixel discriminator in training."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill import distill
from tests.pairs import HEADS, make
from tests.training import read_trace


@pytest.mark.slow
def test_the_pixel_discriminator(
    tiny_teacher: Path, tmp_path: Path, pairs: Path, encoder: Path
) -> None:
    method = f"name: adp, vision_encoder: {encoder}, pixel_frames: 2, {HEADS}"
    rows = read_trace(distill(make(tiny_teacher, tmp_path / "a", pairs, method), quiet=True))
    assert rows[0].keys() >= {"adversarial", "discriminator", "pixel", "pixel_discriminator"}
    assert rows[0]["grad_norm"].keys() == {"student", "discriminator", "pixel_discriminator"}
    without = f"name: adp, pixel_weight: 0, {HEADS}"
    plain = read_trace(distill(make(tiny_teacher, tmp_path / "b", pairs, without), quiet=True))
    assert plain[0]["grad_norm"]["student"] != rows[0]["grad_norm"]["student"]
