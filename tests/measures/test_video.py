"""A video's measures have the names under which ``metrics.json`` keeps them."""

from dataclasses import fields

import numpy as np

from lightx2v_sgmd.measures.frames import FrameMeasures
from lightx2v_sgmd.measures.video import measure_video


def test_all_measures_of_a_video_that_stands_still() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    found = measure_video(np.stack([frame] * 4), fps=8.0)
    assert set(found) == {"optflow", "dynamic", *(f.name for f in fields(FrameMeasures))}
    assert all(isinstance(value, float) for value in found.values())
    assert found["optflow"] < 0.01 and found["dynamic"] == 0.0
