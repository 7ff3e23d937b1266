"""Finds the videos that VBench asks for in a folder, and links all under its names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lightx2v_sgmd.apps.vbench.suite import Suite
from lightx2v_sgmd.outputs import move, temporary_path
from lightx2v_sgmd.system.errors import UserError

VIDEOS: Final = "videos"
LINKS: Final = "vbench/videos"
"""The folder that VBench is given."""
_LINK: Final = re.compile(r"-\d\.mp4$")


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
        if not path.is_symlink() or not _LINK.search(path.name):
            raise UserError(f"{path}: is not a link of this command; move it out of the folder")
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
