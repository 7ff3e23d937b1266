"""The sprite world keeps its promises."""

import numpy as np
import pytest

from lightx2v_sgmd.apps.sprites import world


def test_captions_survive_parsing() -> None:
    rng = np.random.default_rng(0)
    captions = [world.sample_caption(rng, p_two=0.5) for _ in range(300)]
    assert all(world.parse_caption(c.text()) == c for c in captions)
    assert {len(c.objects) for c in captions} == {1, 2}
    for name, options in world.OPTIONS.items():
        values = [getattr(o, name) for c in captions for o in c.objects]
        assert set(values) == {None, *options}


@pytest.mark.parametrize(
    "text", ["", "a red circle", "a pink circle moving", "a thing moving left and", "a a a"]
)
def test_what_is_no_caption_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a caption of the sprite world"):
        world.parse_caption(text)


def test_sprites_fit_their_caption_and_the_frame() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        pair_or_one = world.sample_caption(rng, p_two=0.5)
        caption, sprites, video = world.sample_video(rng, pair_or_one)
        assert len({s.colour for s in sprites}) == len(sprites)
        for obj, sprite in zip(caption.objects, sprites, strict=True):
            assert all(getattr(sprite, k) == v for k, v in obj.named().items())
            low, high = world.SPEEDS[sprite.speed]
            assert low <= np.hypot(sprite.vx, sprite.vy) <= high
        assert video.shape == (world.NUM_FRAMES, world.SIZE, world.SIZE, 3)
        border = np.concatenate(
            [video[:, [0, -1]].reshape(-1, 3), video[:, :, [0, -1]].reshape(-1, 3)]
        )
        assert np.abs(border - world.BACKGROUND).max() < 0.75  # a ramp may touch it, a body not


def test_shapes_have_the_area_of_their_circle() -> None:
    grid = np.arange(-12, 12, 0.1, dtype=np.float32)
    for shape in world.SHAPES:
        mask = world.shape_mask(shape, grid[None, :], grid[:, None], np.float32(5))
        assert mask.sum() * 0.01 == pytest.approx(np.pi * 25, rel=0.03)
