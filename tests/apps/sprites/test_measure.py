"""Measuring finds what was drawn, and the distance between two sets of videos is the formula's."""

import numpy as np
import pytest

from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.apps.sprites.measure import FEATURES, MIN_AREA, frechet_distance, measure


def test_measures_what_was_drawn() -> None:
    sprite = world.Sprite("cyan", "triangle", "up", "quickly", 4.0, 12.0, 26.0, 0.1, -0.8)
    (track,) = measure(world.render((sprite,))).tracks
    assert (track.colour, track.shape, track.direction) == ("cyan", "triangle", "up")
    assert track.velocity == pytest.approx((0.1, -0.8), abs=0.01)
    assert track.area == pytest.approx(np.pi * 16, rel=0.05)
    assert track.start == pytest.approx((12.0, 26.0), abs=0.3)


def test_bytes_and_floats_measure_alike() -> None:
    _, _, video = world.sample_video(np.random.default_rng(5))
    (of_bytes,), (of_floats,) = (
        measure(v).tracks for v in ((video * 255).round().astype(np.uint8), video)
    )
    for name in world.OPTIONS:
        assert getattr(of_bytes, name) == getattr(of_floats, name)
    assert of_bytes.velocity == pytest.approx(of_floats.velocity, abs=0.02)


def test_frechet_distance_against_closed_forms() -> None:
    units = np.array(list(FEATURES.values()), dtype=np.float32)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4000, len(units))).astype(np.float32) * units
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2 * units) == pytest.approx(4 * len(units), rel=1e-3)
    assert frechet_distance(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(
        4 * len(units), rel=0.05
    )


def test_the_least_sprite_is_well_above_the_threshold() -> None:
    assert np.pi * world.RADIUS[0] ** 2 > 3 * MIN_AREA
