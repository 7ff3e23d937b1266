"""A contact sheet of the images of a folder, beside them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from infer.batch.sidecars import problem, publish
from lightx2v_sgmd.files.video import Frames, contact_sheet
from lightx2v_sgmd.outputs import content_hashes
from lightx2v_sgmd.system.console import note

SHEET: Final = "contact_sheet.png"
_SIDE: Final = 192
"""Largest side of a shown image in pixels."""
_COLUMNS: Final = 6
_MOST: Final = 120
"""The most images that are shown: the first ones."""


def write_sheet(files: Sequence[Path], folder: Path, quiet: bool = False) -> Path | None:
    """Writes ``contact_sheet.png``: small copies of the images, in rows of six, in their order.

    Only a sheet of ours is replaced; None is the answer if something else has its name.

    Args:
        files: The images.
        folder: The folder of the sheet.
        quiet: Do not say why there is no sheet.
    """
    sheet = folder / SHEET
    shown = files[:_MOST]
    reason = f"{sheet} is one of the images" if sheet in files else problem(sheet)
    if reason is not None:
        note(f"no contact sheet is written: {reason}", quiet)
        return None
    small = [_small(file) for file in shown]
    rows = [np.stack(small[i : i + _COLUMNS]) for i in range(0, len(small), _COLUMNS)]
    about = {"images": dict(zip([f.name for f in shown], content_hashes(shown), strict=True))}
    appear = partial(publish, video=sheet, provenance=about)
    return contact_sheet(rows, sheet, columns=_COLUMNS, publish=appear)


def _small(file: Path) -> Frames:
    """A small copy ``[H, W, 3]`` of an image, in the middle of a white square."""
    from PIL import Image

    with Image.open(file) as image:
        copy = image.convert("RGB")
    copy.thumbnail((_SIDE, _SIDE))
    square = Image.new("RGB", (_SIDE, _SIDE), "white")
    square.paste(copy, ((_SIDE - copy.width) // 2, (_SIDE - copy.height) // 2))
    return np.asarray(square)
