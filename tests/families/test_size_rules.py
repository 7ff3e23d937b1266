"""The rules for sizes of videos and of images."""

from __future__ import annotations

import pytest

from lightx2v_sgmd.families.size_rules import SizeRules
from lightx2v_sgmd.system.errors import UserError

IMAGES = SizeRules(1, 8, (1, 4, 4), 4, 1024, images=True)


def test_an_image_is_one_frame() -> None:
    assert IMAGES.latent_shape(64, 96, 1) == (4, 1, 8, 12)
    assert IMAGES.nearest_frames(81) == 1 and IMAGES.suffix == ".png"
    with pytest.raises(UserError, match="num_frames: is 81, but this model makes images; leave"):
        IMAGES.latent_shape(64, 96, 81)
    with pytest.raises(UserError, match="width: 80 is not divisible by 32"):
        IMAGES.latent_shape(64, 80, 1)
