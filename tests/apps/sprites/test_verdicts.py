"""Judging: truth scores 1, a wrong caption 0, and each kind of defect is seen."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.apps.sprites.measure import measure
from lightx2v_sgmd.apps.sprites.verdicts import score, verdict_of

Video = NDArray[np.float32]


def random_videos(count: int, seed: int = 0) -> list[tuple[world.Caption, Video]]:
    rng = np.random.default_rng(seed)
    captions = [world.sample_caption(rng, p_two=0.5) for _ in range(count)]
    videos = [world.sample_video(rng, caption) for caption in captions]
    return [(caption, video) for caption, _, video in videos]


def wrong_caption(caption: world.Caption) -> world.Caption:
    """The caption with every named attribute of every object changed to another value."""
    objects = []
    names = list(world.COLOURS)
    for obj in caption.objects:
        changed = {}
        for name, value in obj.named().items():
            options = world.OPTIONS[name]
            # Two colours on: the other object of the video may carry the next one.
            step = 1
            if name == "colour":
                used = {o.colour for o in caption.objects}
                step = next(
                    k for k in range(1, 6) if names[(names.index(value) + k) % 6] not in used
                )
            changed[name] = options[(options.index(value) + step) % len(options)]
        objects.append(replace(obj, **changed))
    return world.Caption(tuple(objects))


def test_wrong_captions_share_nothing() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        caption = world.sample_caption(rng, p_two=0.5)
        for right, wrong in zip(caption.objects, wrong_caption(caption).objects, strict=True):
            assert right.named().keys() == wrong.named().keys()
            assert all(wrong.named()[k] != v for k, v in right.named().items())


def test_ground_truth_scores_one_and_wrong_captions_zero() -> None:
    measured = [(caption, measure(video)) for caption, video in random_videos(150)]
    truth = score([verdict_of(m, caption) for caption, m in measured])
    assert (truth.colour, truth.shape, truth.direction, truth.speed) == (1, 1, 1, 1)
    assert truth.all_attributes == 1 and truth.entropy > 0.97
    wrong = [
        verdict_of(m, wrong_caption(caption))
        for caption, m in measured
        if any(o.named() for o in caption.objects)
    ]
    assert not any(v.all_attributes for v in wrong)
    one_object = [verdict_of(m, wrong_caption(c)) for c, m in measured if len(c.objects) == 1]
    alone = score(one_object)
    assert (alone.colour, alone.shape, alone.direction, alone.speed) == (0, 0, 0, 0)


def right_video() -> tuple[world.Caption, Video]:
    sprite = world.Sprite("red", "square", "right", "slowly", 4.0, 8.0, 12.0, 0.35, 0.0)
    return world.Caption((sprite.caption(),)), world.render((sprite,))


def spoil(kind: str, video: Video) -> Video:
    red = np.array(world.COLOURS["red"], np.float32) / 255
    if kind == "second object":
        video[:, 22:28, 22:28] = np.array(world.COLOURS["blue"], np.float32) / 255
    elif kind == "stray blob in one frame":
        video[7, 24:28, 24:28] = 1.0
    elif kind == "vanishes":
        video[6:] = world.BACKGROUND
    elif kind == "jumps":
        video[4:] = np.roll(video[4:], 6, axis=1)
    elif kind == "falls apart":
        video[:, 26:30, 4:8] = red
    elif kind == "changes colour":
        video[4:] = video[4:, :, :, ::-1]
    elif kind == "changes shape":
        other = world.Sprite("red", "triangle", "right", "slowly", 4.0, 8.0, 12.0, 0.35, 0.0)
        video[5:] = world.render((other,))[5:]
    elif kind == "grows":
        other = world.Sprite("red", "square", "right", "slowly", 6.0, 8.0, 12.0, 0.35, 0.0)
        video[5:] = world.render((other,))[5:]
    elif kind == "nothing":
        video[:] = world.BACKGROUND
    return video


@pytest.mark.parametrize(
    "kind",
    [
        "second object",
        "stray blob in one frame",
        "vanishes",
        "jumps",
        "falls apart",
        "changes colour",
        "changes shape",
        "grows",
        "nothing",
    ],
)
def test_defects_are_not_clean(kind: str) -> None:
    caption, video = right_video()
    assert verdict_of(measure(video.copy()), caption).all_attributes
    assert not verdict_of(measure(spoil(kind, video)), caption).all_attributes


def test_a_video_of_nothing_is_measured_without_fuss() -> None:
    caption, video = right_video()
    for empty in (np.zeros_like(video), spoil("nothing", video)):
        verdict = verdict_of(measure(empty), caption)
        assert verdict.right["colour"] == (0, 1) and verdict.speeds == ()
        assert np.isfinite(measure(empty).features).all()
    white = verdict_of(measure(np.ones_like(video)), caption)
    assert white.right["colour"] == (0, 1) and not white.clean
    noise = np.random.default_rng(0).random(video.shape, dtype=np.float32)
    assert (
        np.isfinite(measure(noise).features).all() and not verdict_of(measure(noise), caption).clean
    )


def test_mode_dropping_shows_in_the_entropy() -> None:
    caption = world.parse_caption("a thing moving")
    rng = np.random.default_rng(0)
    reds = [
        world.Sprite("red", "circle", "up", "slowly", 4.0, 16.0, 20.0, 0.0, -0.35) for _ in range(8)
    ]
    same = score([verdict_of(measure(world.render((s,))), caption) for s in reds])
    varied = score(
        [verdict_of(measure(world.sample_video(rng, caption)[2]), caption) for _ in range(60)]
    )
    assert same.entropy == 0 and varied.entropy > 0.9
