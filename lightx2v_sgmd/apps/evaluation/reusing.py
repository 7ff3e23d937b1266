"""Finds the videos of a side that were made before, in whichever folder of it they are.

They are below the side's folder, or in a range's folder in it. When the split changes, because
there are more processes, machines or seeds, a range takes over what the others have of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lightx2v_sgmd.apps.evaluation.shards import folder_of, ranges, started_ranges
from lightx2v_sgmd.outputs import locked_folder
from lightx2v_sgmd.system.console import note

Make = Callable[[int, int, Path], Sequence[Path]]
"""Makes the videos from one index to before another in a folder, and returns them in order."""


def all_videos(folder: Path, count: int, make: Make, nproc: int = 1) -> dict[int, Path]:
    """All videos of a side by their index, those made that are not there.

    Args:
        folder: The side's folder, which has the folders of ranges.
        count: The number of videos.
        make: Makes a range; finds what is there already.
        nproc: The number of processes that just made the videos; their ranges come first.
    """
    found: dict[int, Path] = {}
    for first, end in ranges(folder, count, nproc):
        if all(index in found for index in range(first, end)):
            continue
        made = make(first, end, folder / folder_of(first, end))
        for index, file in zip(range(first, end), made, strict=True):
            found.setdefault(index, file)
    return found


def take_over(prompts: Sequence[str], first: int, out: Path, quiet: bool) -> None:
    """Links the videos of a range that are elsewhere in the side's folder into the range's.

    Whether they are still what is asked for is left to whoever makes the range, as with any
    video that is there.

    Args:
        prompts: One for each video of the range.
        first: The index of the range's first video.
        out: The range's folder.
        quiet: Print no news.
    """
    from infer.batch.requests import default_name
    from infer.batch.sidecars import link

    side = out.parent
    others = [pair for pair in started_ranges(side) if folder_of(*pair) != out.name]
    pairs: list[tuple[Path, Path]] = []
    for index, prompt in enumerate(prompts, start=first):
        target = out / f"{default_name(index - first, prompt)}.mp4"
        if os.path.lexists(target):
            continue
        places = [side / f"{default_name(index, prompt)}.mp4"]
        places += [
            side / folder_of(a, b) / f"{default_name(index - a, prompt)}.mp4"
            for a, b in others
            if a <= index < b
        ]
        if there := [place for place in places if place.is_file()]:
            # The newest is the likeliest to be of the present options.
            pairs.append((max(there, key=lambda path: path.stat().st_mtime_ns), target))
    if not pairs:
        return
    with locked_folder(out, "evaluate", quiet):
        taken = sum(link(video, target) for video, target in pairs)
    if taken:
        note(f"{taken} videos of {out} were in other folders of {side}", quiet)
