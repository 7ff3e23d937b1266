"""Judging motions: the world's own videos are right, others' captions are wrong, defects count."""

from dataclasses import replace

import numpy as np
import pytest

from lightx2v_sgmd.apps.sprites import motions, world
from lightx2v_sgmd.apps.sprites.measure import measure
from lightx2v_sgmd.apps.sprites.motion_verdicts import (
    OTHER,
    MotionVerdict,
    motion_verdict,
    motion_verdicts,
    score_motions,
    see_motion,
)

FAST = motions.Motion("fast", ("right",))


def sprite(first: tuple[float, float], second: tuple[float, float]) -> motions.MovingSprite:
    return motions.MovingSprite("red", "circle", FAST, 4.5, 12.0, 16.0, first, second)


def manner(first: tuple[float, float], second: tuple[float, float]) -> str:
    return see_motion(measure(motions.render(sprite(first, second))).tracks[0]).manner


def test_the_worlds_videos_are_right_on_everything() -> None:
    rng = np.random.default_rng(0)
    drawn = [
        motions.sample_sprite(rng, motions.MotionCaption(motion=motion))
        for motion in motions.MOTIONS
        for _ in range(4)
    ]
    videos = [(motions.render(s) * 255).round().astype(np.uint8) for s in drawn]
    scores = score_motions(motion_verdicts(videos, [s.caption() for s in drawn]))
    assert scores.named == {"colour": 1, "shape": 1, "direction": 1, "manner": 1}
    assert scores.all_attributes == scores.clean == 1
    assert scores.open_videos == 0 and scores.videos == len(drawn)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.0, 0.0), (0.0, 0.0), "still"),
        ((0.58, 0.0), (0.58, 0.0), "slow"),
        ((1.3, 0.0), (1.3, 0.0), "fast"),
        ((1.3, 0.0), (0.0, -1.3), "turn"),
        ((1.3, 0.0), (-1.3, 0.0), "bounce"),
        ((0.1, 0.0), (1.3, 0.0), "late"),
        ((1.3, 0.0), (0.0, 0.0), OTHER),
        ((0.58, 0.0), (1.3, 0.0), OTHER),
        ((0.58, 0.0), (-0.58, 0.0), OTHER),
        ((0.0, 0.0), (0.58, 0.0), OTHER),
    ],
)
def test_the_manner_is_read_from_both_halves(
    first: tuple[float, float], second: tuple[float, float], expected: str
) -> None:
    assert manner(first, second) == expected


def test_velocities_are_measured() -> None:
    seen = see_motion(measure(motions.render(sprite((1.3, 0.0), (0.0, 0.7)))).tracks[0])
    assert seen.first == pytest.approx((1.3, 0.0), abs=0.03)
    assert seen.second == pytest.approx((0.0, 0.7), abs=0.03)
    assert seen.directions == ("down", "right")
    assert seen.pixels_per_frame == pytest.approx(1.0, abs=0.03)


def test_a_path_of_another_form_is_no_motion_of_the_world() -> None:
    track = measure(motions.render(sprite((1.3, 0.0), (1.3, 0.0)))).tracks[0]
    jagged = track.centroids + np.array([[0, 1.5 * (-1) ** f] for f in range(world.NUM_FRAMES)])
    assert see_motion(replace(track, centroids=jagged)).manner == OTHER


@pytest.mark.parametrize(
    ("wrong", "attribute"),
    [
        (motions.MotionCaption("blue", "circle", FAST), "colour"),
        (motions.MotionCaption("red", "square", FAST), "shape"),
        (motions.MotionCaption("red", "circle", motions.Motion("fast", ("left",))), "direction"),
        (motions.MotionCaption("red", "circle", motions.Motion("late", ("right",))), "manner"),
    ],
)
def test_one_wrong_word_is_one_wrong_attribute(
    wrong: motions.MotionCaption, attribute: str
) -> None:
    measured = measure(motions.render(sprite((1.3, 0.0), (1.3, 0.0))))
    verdict = motion_verdict(measured, wrong)
    assert [name for name, right in verdict.right.items() if not right] == [attribute]
    assert verdict.clean and not verdict.motion_is_open


def test_a_second_object_is_not_clean_and_an_empty_video_is_wrong() -> None:
    one = motions.render(sprite((1.3, 0.0), (1.3, 0.0)))
    other = replace(sprite((0.0, 0.0), (0.0, 0.0)), colour="blue", x=26.0, y=6.0)
    blue = motions.render(other)
    both = np.where(np.abs(blue - world.BACKGROUND) > np.abs(one - world.BACKGROUND), blue, one)
    caption = motions.MotionCaption("red", "circle", FAST)
    assert not motion_verdict(measure(both), caption).clean
    nothing = np.tile(world.BACKGROUND, (world.NUM_FRAMES, world.SIZE, world.SIZE, 1))
    verdict = motion_verdict(measure(nothing), caption)
    assert not any(verdict.right.values()) and not verdict.clean and verdict.manner == OTHER


def test_shares_of_open_motions_count_open_captions_alone() -> None:
    def verdict(manner: str, is_open: bool) -> MotionVerdict:
        right = {} if is_open else {"manner": manner == "fast"}
        return MotionVerdict(manner, right, manner != OTHER, is_open, 1.0)

    shown = ["still", "still", "fast", "turn", OTHER]
    verdicts = [*(verdict(m, True) for m in shown), verdict("fast", False), verdict("late", False)]
    scores = score_motions(verdicts)
    assert scores.open_manners["still"] == pytest.approx(0.4)
    assert scores.open_manners["late"] == 0 and scores.open_manners[OTHER] == pytest.approx(0.2)
    assert scores.rare == pytest.approx(0.4)
    assert scores.named["manner"] == 0.5 and scores.named["colour"] == 0
    assert scores.all_attributes == pytest.approx(5 / 7)
    with pytest.raises(ValueError, match="no verdicts"):
        score_motions([])
