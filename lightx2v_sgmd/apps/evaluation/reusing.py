"""Finds the videos of a side that were made before, in whichever folder of it they are.

They are below the side's folder, or in a range's folder in it. When the split changes, because
there are more processes, machines or seeds, a range takes over what the others have of it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from lightx2v_sgmd.apps.evaluation.shards import folder_of, ranges, started_ranges
from lightx2v_sgmd.outputs import locked_folder
from lightx2v_sgmd.system.console import note

Make = Callable[[int, int, Path], Sequence[Path]]
"""Makes the videos from one index to before another in a folder, and returns them in order."""


def all_videos(folder: Path, count: int, make: Make, nproc: int = 1) -> dict[int, Path]:
    """All videos of a side by their index, those made that are not there.

    A range is asked for only what newer ones do not have: other options may have made it.

    Args:
        folder: The side's folder, which has the folders of ranges.
        count: The number of videos.
        make: Makes a range; finds what is there already.
        nproc: The number of processes that just made the videos, if there were several; their
            ranges come first.
    """
    found: dict[int, Path] = {}
    for pair in ranges(folder, count, nproc):
        for first, end in list(_missing(found, *pair)):
            made = make(first, end, folder / folder_of(first, end))
            found |= zip(range(first, end), made, strict=True)
    return found


def _missing(found: Container[int], first: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range that are not found yet, as ranges."""
    for is_found, part in itertools.groupby(range(first, end), found.__contains__):
        if not is_found:
            indices = list(part)
            yield indices[0], indices[-1] + 1


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
    targets: dict[Path, list[Path]] = {}
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
            targets[target] = sorted(there, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    if not targets:
        return
    with locked_folder(out, "evaluate", quiet):
        taken = sum(
            any(link(video, target) for video in there) for target, there in targets.items()
        )
    if taken:
        were = "1 video was" if taken == 1 else f"{taken} videos were"
        note(f"{were} taken over into {out} from other folders of {side}", quiet)
