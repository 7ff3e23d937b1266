"""Captions to measure on were not trained on, and rows are summed up as the contract says."""

import numpy as np
import pytest

from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.apps.sprites.evaluate import (
    evaluate,
    gap_closed,
    held_out_captions,
    summarise,
    teacher_schedule,
    training_captions,
)


def test_training_sees_no_held_out_caption() -> None:
    trained = set(training_captions(2000))
    held_out = {caption.text() for caption in held_out_captions(1000)}
    assert not trained & held_out and len(trained) > 200 and len(held_out) > 100
    for captions in (trained, held_out):  # both sides leave every attribute open and name it
        parsed = [world.parse_caption(text).objects[0] for text in captions]
        for name, options in world.OPTIONS.items():
            assert {getattr(obj, name) for obj in parsed} == {None, *options}


def test_the_world_itself_scores_one() -> None:
    """A sampler that draws from the world is right on everything and keeps all motion."""
    captions = held_out_captions(40)
    rng = np.random.default_rng(0)

    def sample(prompts: object, seeds: object) -> np.ndarray:
        videos = [world.sample_video(rng, caption)[2] for caption in captions]
        return (np.stack(videos) * 255).round().astype(np.uint8)

    row, other = (evaluate(sample, 1, captions, range(40)) for _ in range(2))
    result = summarise(row, other)
    assert result["all_attributes"] == result["colour"] == result["speed"] == 1
    assert result["motion"] == pytest.approx(1, abs=0.1)
    assert result["frechet"] < 5 and result["prompts"] == 40


def test_gap_closed() -> None:
    shares = {"teacher": 0.9, "undistilled": 0.4, "student": 0.8}
    metrics = {name: {"all_attributes": share} for name, share in shares.items()}
    assert gap_closed(metrics) == pytest.approx(0.8)


def test_the_teachers_own_steps() -> None:
    schedule = teacher_schedule(shift=3.0, steps=50)
    assert len(schedule) == 50 and schedule.times[0] == 1 and schedule.times[25] == 0.75
