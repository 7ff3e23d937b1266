"""Flow against motions that are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.apps.sprites.evaluate import held_out_captions
from lightx2v_sgmd.apps.sprites.measure import measure
from lightx2v_sgmd.measures.optical_flow import flow, is_dynamic, mean_flow, top_flow


def moving_texture(
    dx: float, dy: float, size: int = 64, frames: int = 9, seed: int = 0
) -> NDArray[np.uint8]:
    """A smooth random picture that moves as a whole by ``(dx, dy)`` pixels a frame."""
    large = np.random.default_rng(seed).normal(size=(size + 80, size + 80, 3)).astype(np.float32)
    large = cv2.GaussianBlur(large, (0, 0), 2.5)
    large = (large - large.min()) / (large.max() - large.min()) * 255
    made = []
    for index in range(frames):
        shift = np.array([[1, 0, index * dx - 40], [0, 1, index * dy - 40]], np.float32)
        made.append(cv2.warpAffine(large, shift, (size, size), flags=cv2.INTER_CUBIC))
    return np.stack(made).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("dx", "dy"), [(1.0, 0.0), (0.0, -0.5), (-2.0, 1.5), (0.25, 0.25)])
@pytest.mark.parametrize("size", [32, 64, 160])
def test_a_translation_is_found(dx: float, dy: float, size: int) -> None:
    field = flow(moving_texture(dx, dy, size))
    assert field.shape[0] == 8 and field.shape[3] == 2
    h, w = field.shape[1:3]
    middle = field[:, h // 4 : -h // 4, w // 4 : -w // 4]
    np.testing.assert_allclose(np.median(middle, (0, 1, 2)), (dx, dy), atol=0.08)
    assert mean_flow(field) == pytest.approx(np.hypot(dx, dy), rel=0.2)


def test_what_stands_still_does_not_flow() -> None:
    assert mean_flow(flow(moving_texture(0, 0))) == 0
    flat = np.full((9, 32, 32, 3), 30, np.uint8)
    assert mean_flow(flow(flat)) == 0 and not is_dynamic(flat, 8)


def test_sprites_flow_at_their_speed() -> None:
    rng = np.random.default_rng(0)
    ratios, mistakes = [], 0
    for caption in held_out_captions(30):
        video = (world.sample_video(rng, caption)[2] * 255).round().astype(np.uint8)
        speed = measure(video).tracks[0].pixels_per_frame
        ratios.append(float(top_flow(flow(video)).mean()) / speed)
        mistakes += is_dynamic(video, world.FPS) != (speed > world.SPEED_THRESHOLD)
        # Only the sprite and what is near it can flow: a fifth of the frame.
        assert mean_flow(flow(video)) < 0.25 * speed
    assert np.mean(ratios) == pytest.approx(1, abs=0.05) and mistakes == 0


@pytest.mark.parametrize(("speed", "dynamic"), [(1.0, False), (2.0, True)])
def test_dynamic_degree_has_vbenchs_threshold(speed: float, dynamic: bool) -> None:
    """6 pixels per frame of 256 are 1.5 of 64, at 8 frames per second."""
    assert is_dynamic(moving_texture(speed, 0), 8) is dynamic
    # At 16 frames per second every other frame is looked at: twice the motion between them.
    assert is_dynamic(moving_texture(speed, 0, frames=17), 16)


def test_dynamic_degree_wants_a_quarter_of_the_frames_to_move() -> None:
    moving, still = moving_texture(2.0, 0, frames=17), moving_texture(2.0, 0, frames=17)
    still[3:] = still[3]  # three pairs move, four are asked for
    assert is_dynamic(moving, 8) and not is_dynamic(still, 8)
