"""Measures of frames on pictures whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from lightx2v_sgmd.measures.frames import (
    FrameMeasures,
    colourfulness,
    measure_frames,
    moved_difference,
)
from lightx2v_sgmd.measures.optical_flow import flow
from tests.measures.test_optical_flow import moving_texture


def measured(video: np.ndarray) -> FrameMeasures:
    return measure_frames(video, flow(video))


def flat(*colours: tuple[int, int, int], size: int = 32) -> np.ndarray:
    """A video with one even frame of each colour."""
    return np.stack([np.full((size, size, 3), colour, np.uint8) for colour in colours])


def test_an_even_colour_has_its_own_numbers_and_no_others() -> None:
    result = measured(flat((200, 100, 50), (200, 100, 50)))
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert result.brightness == pytest.approx(luma / 255, rel=1e-6)
    assert result.saturation == pytest.approx(150 / 200)
    # No spread: 0.3 times the length of (R - G, (R + G) / 2 - B).
    assert result.colourfulness == pytest.approx(0.3 * np.hypot(100, 100))
    assert result.contrast == pytest.approx(0, abs=1e-6)
    assert result.sharpness == result.change == result.flicker == 0


def test_black_is_neither_saturated_nor_an_error() -> None:
    result = measured(flat((0, 0, 0), (0, 0, 0)))
    assert result.saturation == result.brightness == 0


def test_contrast_is_the_standard_deviation_of_luma() -> None:
    video = flat((0, 0, 0), (0, 0, 0))
    video[:, :, 16:] = 255
    result = measured(video)
    assert result.contrast == pytest.approx(0.5) and result.brightness == pytest.approx(0.5)


def test_colourfulness_of_two_colours() -> None:
    frame = flat((255, 0, 0))[0]
    frame[:, 16:] = (0, 255, 0)
    # R - G is +255 or -255: spread 255, mean 0. (R + G) / 2 - B is 127.5 everywhere.
    assert colourfulness(frame) == pytest.approx(255 + 0.3 * 127.5)


def test_sharpness_of_a_point() -> None:
    """The Laplacian of a point of height a is -4 a there and a beside it: 20 a^2 in all."""
    video = flat((100, 100, 100), (100, 100, 100))
    video[:, 10, 12] = 150
    assert measured(video).sharpness == pytest.approx(20 * 50**2 / 32**2, rel=1e-4)


def test_alternating_light_flickers_by_its_step() -> None:
    result = measured(flat((100,) * 3, (110,) * 3, (100,) * 3))
    assert result.flicker == pytest.approx(10) and result.change == pytest.approx(10)


def test_motion_changes_the_picture_and_does_not_flicker() -> None:
    moving, still = measured(moving_texture(2.0, 0)), measured(moving_texture(0, 0))
    assert still.change == still.flicker == 0
    assert moving.change > 8 and moving.flicker < 0.15 * moving.change
    lighter = moving_texture(2.0, 0).astype(int)
    lighter[1::2] += 10
    assert measured(lighter.clip(0, 255).astype(np.uint8)).flicker > 8


def test_the_next_frame_is_moved_back_by_the_flow() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 255, (20, 30)).astype(np.float32)
    second = np.roll(first, (1, 3), axis=(0, 1))  # down by 1, right by 3
    motion = np.broadcast_to(np.array([3.0, 1.0], np.float32), (20, 30, 2))
    assert moved_difference(first, second, motion) == pytest.approx(0, abs=1e-3)
    assert moved_difference(first, second, -motion) > 50
