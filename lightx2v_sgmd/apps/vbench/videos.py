"""Makes the videos that VBench asks for, in ranges that machines can share, and links them.

A range of videos has a folder of its own, ``videos/00000-00944``, so that several machines can work
below one output, or each below its own whose ``videos/*`` are then copied together. The seed of a
video is that of the first one plus its index, whichever machine makes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lightx2v_sgmd.apps.vbench.suite import Suite
from lightx2v_sgmd.outputs import move, temporary_path
from lightx2v_sgmd.system.errors import UserError

VIDEOS: Final = "videos"
LINKS: Final = "vbench/videos"
"""The folder that VBench is given."""
_RANGE: Final = re.compile(r"(\d{5,7})-(\d{5,7})")
_SHARD: Final = re.compile(r"(\d{1,5})/(\d{1,5})")

Make = Callable[[int, int, Path], Sequence[Path]]
"""Makes the videos from one index to before another in a folder, and returns them in order."""


@dataclass(frozen=True)
class Shard:
    """One machine's part of the videos: ``number`` of ``count``, from 1."""

    number: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Reads ``I/N``.

        Raises:
            UserError: it is no such thing.
        """
        found = _SHARD.fullmatch(text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(
                f"--shard: {text[:40]!r} is not I/N with I from 1 to N; the second of four is 2/4"
            )
        return Shard(int(found[1]), int(found[2]))

    def range(self, count: int) -> tuple[int, int]:
        """The indices of its videos: from the first one to before the second."""
        return (self.number - 1) * count // self.count, self.number * count // self.count


def folder_of(first: int, end: int) -> str:
    """The name of a range's folder."""
    return f"{first:05d}-{end:05d}"


def ranges(folder: Path, count: int) -> list[tuple[int, int]]:
    """The ranges that cover all videos: those begun, then what they leave out.

    Args:
        folder: The folder of ranges.
        count: The number of videos.
    """
    begun = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (found := _RANGE.fullmatch(path.name)) and path.is_dir():
            first, end = int(found[1]), int(found[2])
            if first < end <= count:
                begun.append((first, end))
    covered = 0
    gaps = []
    for first, end in sorted(begun):
        if first > covered:
            gaps.append((covered, first))
        covered = max(covered, end)
    if covered < count:
        gaps.append((covered, count))
    return begun + gaps


def all_videos(suite: Suite, folder: Path, make: Make) -> dict[int, Path]:
    """All videos by their index, those made that are not there.

    Args:
        suite: The prompts.
        folder: The folder of ranges.
        make: Makes a range; finds what is there already.
    """
    found: dict[int, Path] = {}
    for first, end in ranges(folder, suite.count):
        if all(index in found for index in range(first, end)):
            continue
        made = make(first, end, folder / folder_of(first, end))
        for index, file in zip(range(first, end), made, strict=True):
            found.setdefault(index, file)
    return found


def given_videos(suite: Suite, files: Sequence[Path]) -> dict[int, Path]:
    """The videos of a folder that have VBench's names, by their index.

    Raises:
        UserError: not one of them has.
    """
    named = {file.name: file for file in files}
    found = {
        index: named[suite.name(index)]
        for index in range(suite.count)
        if suite.name(index) in named
    }
    if not found:
        raise UserError(
            f"--weights: no video is named as VBench looks for it ({suite.name(0)}); rename them, "
            "or give the weights that make them"
        )
    return found


def link(suite: Suite, videos: dict[int, Path], out: Path) -> Path:
    """Links the videos under VBench's names.

    Args:
        suite: The prompts.
        videos: The videos by their index.
        out: The output folder.

    Returns:
        The folder of links; nothing else is in it.

    Raises:
        UserError: something that is no link of ours is in it.
    """
    folder = out / LINKS
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {suite.name(index): path for index, path in videos.items()}
    for path in folder.iterdir():
        if not path.is_symlink():
            raise UserError(f"{path}: is no link of this command; move it out of the folder")
        if path.name not in wanted:
            path.unlink()
    for name, path in wanted.items():
        target = os.path.relpath(path.resolve(), folder.resolve())
        if (folder / name).is_symlink() and os.readlink(folder / name) == target:
            continue
        temporary = temporary_path(folder / name)
        temporary.symlink_to(target)
        move(temporary, folder / name)
    return folder
