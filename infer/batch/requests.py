"""Requests: prompts with their seeds, sizes and names, from a file or from a caller."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from infer.checks import Checked, wanted_size
from infer.engine import seed_list
from lightx2v_sgmd.files.images import check_image
from lightx2v_sgmd.files.prompts import image_beside, jsonl_rows, prompt_problem, read_prompts
from lightx2v_sgmd.system.errors import UserError, short_line

_KEYS: Final = ("prompt", "seed", "height", "width", "num_frames", "name", "image")
MOST_VIDEOS: Final = 100_000
"""The most videos of one command; a benchmark such as VBench asks for 5,000."""
_NAME_BYTES: Final = 200
"""Longest name of a video in bytes; while it is written its file has a longer one."""
_SHOWN: Final = 10
"""Mistakes of a file that are shown; the others are counted."""
_NAME: Final = re.compile(r"\w[^/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]{0,99}")


@dataclass(frozen=True)
class Request:
    """One video to make.

    Attributes:
        prompt: The prompt.
        seed: The seed of its noise.
        name: The name of its file, without the suffix.
        height: Height in pixels; None: as trained, or as the caller says for all.
        width: Width in pixels.
        num_frames: Number of frames, ``4k + 1``.
        where: ``FILE:LINE`` of the prompt, or "".
        image: The image that it starts from; None: from text alone, or the one given for all.
    """

    prompt: str
    seed: int
    name: str
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    where: str = ""
    image: Path | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and frames; only after ``settle``."""
        assert self.height and self.width and self.num_frames, "the request was not settled"
        return self.height, self.width, self.num_frames


def make_requests(
    prompts: str | Sequence[str] | Path, seed: int, images: Sequence[Path | None] = ()
) -> list[Request]:
    """The requests of one prompt, of several, or of a file of them.

    Args:
        prompts: A ``Path`` is a file: ``.txt``, ``.csv``, or ``.jsonl`` whose lines may also have
            ``seed``, ``height``, ``width``, ``num_frames``, ``name`` and ``image``.
        seed: The first video's; later videos use seed+1, seed+2, ... unless their line has one.
        images: The image that each video starts from, for prompts that are no file; empty if none
            does.

    Raises:
        UserError: no prompts, or lines that cannot be used, all of them named.
    """
    if isinstance(prompts, Path) and prompts.suffix.lower() == ".jsonl":
        return _read_jsonl(prompts, seed)
    texts = list(read_prompts(prompts)) if isinstance(prompts, Path) else prompts
    texts = [texts] if isinstance(texts, str) else list(texts)
    if len(texts) > MOST_VIDEOS:
        where = f"{prompts}: " if isinstance(prompts, Path) else "prompts: "
        raise UserError(
            f"{where}asks for {len(texts):,} videos, and at most {MOST_VIDEOS:,} are made by "
            "one command; split it"
        )
    if not texts or not all(text.strip() for text in texts):
        raise UserError("prompt: is empty; say what the video shows")
    for text in texts:
        if problem := prompt_problem(text):
            raise UserError(f"prompt: {problem}; shorten or correct it")
    return [
        Request(text, number, default_name(index, text), image=image)
        for index, (text, number, image) in enumerate(
            zip(texts, seed_list(seed, len(texts)), images or [None] * len(texts), strict=True)
        )
    ]


def settle(
    requests: Sequence[Request],
    checked: Checked,
    height: int | None,
    width: int | None,
    num_frames: int | None,
    image: Path | None = None,
) -> list[Request]:
    """Fills in sizes and images: a request's own, else the one given for all, else as trained.

    Raises:
        UserError: sizes that the model cannot make, images that cannot be read or that it does not
            take, all of them named.
    """
    settled, problems = [], []
    for request in requests:
        asked = (request.height or height, request.width or width, request.num_frames or num_frames)
        try:
            h, w, f = wanted_size(checked, *asked)
            start = checked_image(checked, request.image or image)
            settled.append(replace(request, height=h, width=w, num_frames=f, image=start))
        except UserError as error:
            problems.append(f"{request.where}: {error}" if request.where else str(error))
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return settled


def checked_image(checked: Checked, image: Path | None) -> Path | None:
    """The image that a video starts from, once it is known that it can.

    Raises:
        UserError: the model takes none, or needs one, or the image cannot be read.
    """
    takes = checked.model.takes_image
    if image is None and takes == "always":
        raise UserError(
            "image: is missing, and this model starts from one; add --image FILE, or image to the "
            "lines of a .jsonl file"
        )
    if image is not None and takes == "never":
        raise UserError(
            "image: is given, and this model makes videos from text alone; leave it out, or use an "
            "image-to-video model"
        )
    if image is not None:
        check_image(image)
    return image


def batches(requests: Sequence[Request], limit: int) -> list[list[Request]]:
    """Requests of one size together, at most ``limit``; sizes in the order they first appear."""
    by_size: dict[tuple[int, int, int], list[Request]] = {}
    for request in requests:
        by_size.setdefault(request.size, []).append(request)
    return [
        same[start : start + limit]
        for same in by_size.values()
        for start in range(0, len(same), limit)
    ]


def default_name(index: int, prompt: str) -> str:
    """The name of the file, without the suffix, of a prompt's video with that index."""
    return f"{index:04d}_{slug(prompt)}"


def slug(prompt: str) -> str:
    """A prompt's first words as part of a file name."""
    words = re.findall(r"\w+", prompt[:200].lower())
    return "_".join(words)[:48].strip("_") or "video"


def _read_jsonl(path: Path, seed: int) -> list[Request]:
    requests: list[Request] = []
    problems: list[str] = []
    names: dict[str, str] = {}
    for number, row in jsonl_rows(path, MOST_VIDEOS):
        where = f"{path}:{number}"
        index = len(requests) + len(problems)
        try:
            if isinstance(row, UserError):
                raise row
            request = _request(row, path, where, index, seed + index, hints=len(problems) < _SHOWN)
            if request.name in names:
                raise UserError(
                    f"name: {request.name!r} is also that of {names[request.name]}; give each "
                    "video its own"
                )
            names[request.name] = where
            requests.append(request)
        except UserError as error:
            problems.append(f"{where}: {error}")
    if problems:
        shown = problems[:_SHOWN]
        if len(problems) > _SHOWN:
            shown.append(f"{path}: and {len(problems) - _SHOWN} more")
        raise UserError(*shown)
    if not requests:
        raise UserError(f"{path}: holds no prompts; write at least one")
    return requests


def _request(
    row: dict[str, Any], path: Path, where: str, index: int, seed: int, *, hints: bool
) -> Request:
    for key in row:
        if key not in _KEYS:
            key = key[:60]
            near = difflib.get_close_matches(key, _KEYS, 1) if hints else []
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(_KEYS)}"
            raise UserError(f"{key}: unknown key; {hint}")
    numbers = {key: _whole(row, key) for key in _KEYS if key not in ("prompt", "name", "image")}
    own_seed = numbers.pop("seed")
    if own_seed is not None and not 0 <= own_seed < 2**63:
        raise UserError(f"seed: {own_seed} is out of range; use 0 to 2^63 - 1")
    name = row.get("name", default_name(index, row["prompt"]))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"name: {short_line(repr(name), 120)} is not a valid file name; begin with a letter "
            "or digit, and use no '/', '\\' or control characters, at most 100 characters"
        )
    if len(name.encode()) > _NAME_BYTES:
        raise UserError(
            f"name: {name[:20]}... has {len(name.encode())} bytes, more than {_NAME_BYTES}; "
            "shorten it"
        )
    return Request(
        row["prompt"],
        seed if own_seed is None else own_seed,
        name.removesuffix(".mp4").removesuffix(".png"),
        numbers["height"],
        numbers["width"],
        numbers["num_frames"],
        where,
        image_beside(path, row.get("image")),
    )


def _whole(row: dict[str, Any], key: str) -> int | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or (key != "seed" and value < 1):
        raise UserError(
            f"{key}: {short_line(repr(value), 60)} is not a positive whole number; correct it or "
            "leave it out"
        )
    return value
