"""The contact sheet of a folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from infer.batch.sheet import SHEET, write_sheet
from lightx2v_sgmd.files.video import write_frames


def test_a_sheet_shows_the_images_and_replaces_only_its_own(tmp_path: Path) -> None:
    files = []
    for index in range(7):
        image = np.full((1, 64, 32 + 32 * (index % 2), 3), 30 * index, np.uint8)
        files.append(write_frames(image, tmp_path / f"{index}.png", 1.0))
        with Image.open(files[-1]) as read:
            assert np.array_equal(np.asarray(read), image[0])
    assert write_sheet(files, tmp_path) == tmp_path / SHEET
    with Image.open(tmp_path / SHEET) as sheet:
        first = np.asarray(sheet)
    assert first.shape[1] > 6 * 192 and first.shape[0] > 2 * 192 and (first == 180).any()
    assert write_sheet(files[:2], tmp_path) is not None  # its own
    (tmp_path / SHEET).write_bytes(b"somebody's")
    assert write_sheet(files, tmp_path, quiet=True) is None
    assert (tmp_path / SHEET).read_bytes() == b"somebody's"
