"""The image that a video starts from, as a request carries it: a file of a form, or a data URL.

It is decoded once within limits before a job is accepted. No address in a request is fetched, and
no path opened. Imports no PyTorch.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from typing import Final

from infer.serve.api.request import RequestProblem, VideoRequest
from lightx2v_sgmd.files.images import decode_image
from lightx2v_sgmd.system.errors import UserError

NAME: Final = "input_reference"
MOST_BODY: Final = 16 * 2**20
"""Bytes of a request where students take images: a photograph of a camera as a data URL."""
MOST_PIXELS: Final = 20_000_000
_DATA_URL: Final = re.compile(r"data:image/(?:png|jpeg|webp);base64,")
_ONE_AT_A_TIME: Final = threading.Lock()
"""An image may take 200 MB while it is decoded."""


def reference_of(request: VideoRequest, upload: bytes | None) -> bytes | None:
    """The content of a request's image file; None if it has none.

    Args:
        request: The request's fields.
        upload: The file of a form.

    Raises:
        RequestProblem: it is no image that can be decoded, or is too large.
    """
    given = request.input_reference
    url = given if isinstance(given, str) else given and given.image_url
    if upload is None and not url:
        return None
    if upload is not None and url:
        raise RequestProblem(f"{NAME}: is given twice; give it once")
    content = _decoded_url(url) if upload is None and url else upload or b""
    with _ONE_AT_A_TIME:
        try:
            decode_image(content, NAME, MOST_PIXELS)
        except UserError as error:
            raise RequestProblem(str(error)) from None
    return content


def fingerprint(content: bytes) -> str:
    """The name of an image's content in the queue."""
    return hashlib.sha256(content).hexdigest()


def _decoded_url(url: str) -> bytes:
    found = _DATA_URL.match(url[:40])
    if found is None:
        raise RequestProblem(
            f"{NAME}: is not a data URL of a PNG, JPEG or WebP image (data:image/png;base64,...); "
            "this server fetches nothing and opens no file"
        )
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except ValueError:
        raise RequestProblem(f"{NAME}: is not base64 after its comma; encode it again") from None
