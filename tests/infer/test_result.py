"""The result of a generation: one video of several has its own prompt, seed, latents and frames."""

import numpy as np
import torch

from infer.result import Generation


def several(decoded: bool) -> Generation:
    """Two videos that differ in everything."""
    latents = torch.arange(2.0).reshape(2, 1, 1, 1, 1)
    frames = tuple(np.full((1, 2, 2, 3), value, np.uint8) for value in (7, 8))
    return Generation(("a", "b"), (3, 4), latents, frames if decoded else (), 16.0, {"text": 1.0})


def test_one_video_of_several() -> None:
    made = several(decoded=True)
    second = made[1]
    assert len(made) == 2
    assert (second.prompt, second.seed, second.fps, second.timings) == ("b", 4, 16.0, {"text": 1.0})
    assert second.latents.tolist() == [[[[1.0]]]] and int(second.frames.max()) == 8


def test_a_video_that_was_not_decoded_has_no_frames() -> None:
    assert several(decoded=False)[0].frames.shape == (0, 0, 0, 3)
