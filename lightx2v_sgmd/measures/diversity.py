"""Diversity: how much the videos of one prompt differ from one seed to the next.

Legend: K videos, F frames, H height, W width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Videos = NDArray[np.uint8]


def pairwise_distance(videos: Videos) -> float:
    """Mean over pairs of the root mean square difference of all pixel values, 0 to 1.

    Args:
        videos: ``[K, F, H, W, 3]``.
    """
    values = videos.reshape(len(videos), -1).astype(np.float64) / 255
    distances = [
        float(np.sqrt(((values[i] - values[j]) ** 2).mean()))
        for i in range(len(values))
        for j in range(i)
    ]
    return float(np.mean(distances)) if distances else 0.0
