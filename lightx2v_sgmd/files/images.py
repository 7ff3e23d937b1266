"""Images that videos start from: checked and decoded within limits, cut to a video's shape.

The formats are PNG, JPEG and WebP. Nothing else of Pillow's decoders is reached.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.system.errors import UserError, first_line
from lightx2v_sgmd.untrusted.reading import read_limited

FORMATS: Final = ("PNG", "JPEG", "WEBP")
MOST_BYTES: Final = 50_000_000
MOST_PIXELS: Final = 50_000_000
"""Most pixels of an image; cameras have some 50 million."""
LEAST_SIDE: Final = 16
"""Least pixels of a side."""


def read_image(path: str | Path) -> Any:
    """Reads an image as Pillow's RGB image, turned as its camera says.

    Raises:
        UserError: the file is missing, too large, damaged, or of another format.
    """
    return decode_image(read_limited(Path(path), MOST_BYTES), str(path), MOST_PIXELS)


def decode_image(content: bytes, what: str, most_pixels: int = MOST_PIXELS) -> Any:
    """Decodes the content of an image file; see ``read_image``.

    Args:
        content: The bytes of the file.
        what: The image's name in messages.
        most_pixels: Most pixels that are decoded.
    """
    from PIL import ImageOps

    with _damage_named(what, most_pixels):
        image = _opened(content, what, most_pixels)
        image.load()
        return ImageOps.exif_transpose(image).convert("RGB")


def check_image(path: str | Path) -> str:
    """Checks that an image file can be read; returns the sha256 of its content.

    This is faster than reading: of a PNG file the checksums are compared, and a JPEG file is
    decoded at an eighth of its size.

    Raises:
        UserError: as ``read_image``.
    """
    content = read_limited(Path(path), MOST_BYTES)
    with _damage_named(str(path), MOST_PIXELS):
        image = _opened(content, str(path), MOST_PIXELS)
        if image.format == "PNG":
            image.verify()
        else:
            image.draft("RGB", (1, 1))
            image.load()
    return hashlib.sha256(content).hexdigest()


def fitted(image: Any, height: int, width: int) -> Any:
    """The largest part of an image, from its middle, that has the shape of a video.

    Args:
        image: Pillow's image.
        height: The video's.
        width: The video's.

    Returns:
        The part, at the image's own resolution.
    """
    taken_width = min(image.width, max(1, round(image.height * width / height)))
    taken_height = min(image.height, max(1, round(image.width * height / width)))
    left = (image.width - taken_width) // 2
    top = (image.height - taken_height) // 2
    return image.crop((left, top, left + taken_width, top + taken_height))


def _opened(content: bytes, what: str, most_pixels: int) -> Any:
    from PIL import Image

    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > most_pixels:
        raise UserError(
            f"{what}: has {image.width} x {image.height} pixels, more than the {most_pixels:,} "
            "that are read; make it smaller"
        )
    if min(image.size) < LEAST_SIDE:
        raise UserError(
            f"{what}: has {image.width} x {image.height} pixels; give an image of at least "
            f"{LEAST_SIDE} x {LEAST_SIDE}"
        )
    return image


@contextmanager
def _damage_named(what: str, most_pixels: int) -> Iterator[None]:
    """Makes whatever Pillow raises for a damaged file one line."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limits here are stricter than Pillow's warning
            yield
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{what}: is not a PNG, JPEG or WebP image; convert it to one") from None
    except Image.DecompressionBombError:  # Pillow's own limit, for headers that say far more
        raise UserError(
            f"{what}: has more than the {most_pixels:,} pixels that are read; make it smaller"
        ) from None
    except Exception as error:  # a decoder raises anything for a damaged file
        raise UserError(
            f"{what}: cannot be decoded ({first_line(error)}); it is damaged, save it again"
        ) from None
