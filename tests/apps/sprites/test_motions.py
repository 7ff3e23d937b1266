"""The world of motions: its captions read back, and its videos are what they say."""

from collections import Counter

import numpy as np
import pytest

from lightx2v_sgmd.apps.sprites import motions, world

EVERY = [
    motions.MotionCaption(colour, shape, motion)
    for colour in (None, *world.COLOURS)
    for shape in (None, *world.SHAPES)
    for motion in (None, *motions.MOTIONS)
]


def test_every_caption_has_words_of_its_own_and_reads_back() -> None:
    assert len({caption.text() for caption in EVERY}) == len(EVERY) == 560
    assert all(motions.parse_motion_caption(caption.text()) == caption for caption in EVERY)


@pytest.mark.parametrize(
    ("text", "motion"),
    [
        ("a thing", None),
        ("A still thing.", motions.Motion("still", ())),
        ("a thing moving left slowly", motions.Motion("slow", ("left",))),
        ("a thing moving up quickly", motions.Motion("fast", ("up",))),
        ("a thing moving up and left", motions.Motion("turn", ("left", "up"))),
        ("a thing moving right and left", motions.Motion("bounce", ("left", "right"))),
        ("a thing moving down slowly and quickly", motions.Motion("late", ("down",))),
    ],
)
def test_words_of_motions(text: str, motion: motions.Motion | None) -> None:
    assert motions.parse_motion_caption(text).motion == motion


@pytest.mark.parametrize(
    "text",
    [
        "a dog",
        "a red circle moving",
        "a red circle moving left",
        "a still red circle moving left slowly",
        "a red circle moving left and left",
        "a red circle moving left and up quickly",
        "a red circle moving left slowly and a thing moving left slowly",
    ],
)
def test_other_text_is_no_caption(text: str) -> None:
    assert not motions.is_motion_caption(text)
    with pytest.raises(ValueError, match="is not a caption of the world of motions"):
        motions.parse_motion_caption(text)


def test_open_motions_follow_the_mixture_and_named_ones_are_even() -> None:
    rng = np.random.default_rng(0)
    count = 4000
    shown = Counter(
        motions.sample_sprite(rng, motions.MotionCaption()).motion.manner for _ in range(count)
    )
    assert sum(motions.MIXTURE.values()) == pytest.approx(1)
    for manner, share in motions.MIXTURE.items():
        assert shown[manner] / count == pytest.approx(share, abs=0.02)
    captions = [motions.sample_motion_caption(rng) for _ in range(count)]
    named = Counter(c.motion.manner for c in captions if c.motion is not None)
    assert sum(named.values()) / count == pytest.approx(0.65, abs=0.03)
    for manner in motions.MANNERS:
        assert named[manner] / sum(named.values()) == pytest.approx(1 / 6, abs=0.03)


def test_objects_stay_inside_and_move_as_their_manner_says() -> None:
    rng = np.random.default_rng(1)
    for motion in motions.MOTIONS:
        for shape in world.SHAPES:
            sprite = motions.sample_sprite(rng, motions.MotionCaption(None, shape, motion))
            where = sprite.positions()
            left, right, up, down = (sprite.radius * e for e in world.EXTENT[shape])
            assert (where[:, 0] - left).min() >= 0 and (where[:, 0] + right).max() <= world.SIZE
            assert (where[:, 1] - up).min() >= 0 and (where[:, 1] + down).max() <= world.SIZE
            first, second = (float(np.hypot(*v)) for v in (sprite.first, sprite.second))
            if motion.manner == "still":
                assert first == second == 0
            elif motion.manner == "late":
                assert first <= motions.CREEP[1] and second >= world.SPEEDS["quickly"][0]
            else:
                assert first == pytest.approx(second)
                assert (first > world.SPEED_THRESHOLD) == (motion.manner != "slow")


def test_the_middle_of_every_path_is_that_of_the_frame() -> None:
    rng = np.random.default_rng(4)
    for motion in motions.MOTIONS:
        where = motions.sample_sprite(rng, motions.MotionCaption(motion=motion)).positions()
        away = (where.min(0) + where.max(0)) / 2 - world.SIZE / 2
        assert (abs(away) <= motions.CENTRE_JITTER + 1e-9).all() and (away != 0).any()


def test_the_path_has_its_knee_at_the_middle_frame() -> None:
    way = motions.path((1.0, 0.0), (0.0, -2.0))
    assert way[:5].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0]]
    assert way[5:].tolist() == [[4, -2], [4, -4], [4, -6], [4, -8]]


def test_either_direction_of_a_pair_comes_first() -> None:
    rng = np.random.default_rng(2)
    bounce = motions.MotionCaption(motion=motions.Motion("bounce", ("left", "right")))
    firsts = [motions.sample_sprite(rng, bounce).first[0] > 0 for _ in range(40)]
    assert 8 < sum(firsts) < 32


def test_a_rendered_object_is_at_its_place() -> None:
    rng = np.random.default_rng(3)
    sprite = motions.sample_sprite(rng, motions.MotionCaption("red", "circle"))
    video = motions.render(sprite)
    assert video.shape == (world.NUM_FRAMES, world.SIZE, world.SIZE, 3)
    mass = video[..., 0] - world.BACKGROUND[0]
    grid = np.arange(world.SIZE) + 0.5
    for frame, (x, y) in zip(mass, sprite.positions(), strict=True):
        assert (frame.sum(0) * grid).sum() / frame.sum() == pytest.approx(x, abs=0.05)
        assert (frame.sum(1) * grid).sum() / frame.sum() == pytest.approx(y, abs=0.05)
