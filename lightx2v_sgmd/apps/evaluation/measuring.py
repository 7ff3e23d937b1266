"""Measures videos, and keeps each result under the hash of the video's content.

Legend: F frames, H height, W width, K videos of one prompt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.files.video import Frames, read_video
from lightx2v_sgmd.measures.diversity import pairwise_distance
from lightx2v_sgmd.measures.video import measure_video
from lightx2v_sgmd.outputs import WrittenFiles, content_hashes
from lightx2v_sgmd.system.console import progress
from lightx2v_sgmd.system.errors import UserError, first_line, short_line
from lightx2v_sgmd.system.optional_packages import required
from lightx2v_sgmd.untrusted.json_text import MEASURED, read_record

RULES: Final = 1
"""The version of the measures; results of another version are computed again."""
_SAVE_S: Final = 20.0
_SIDE: Final = 64
"""Pixels of the shorter side to which frames are reduced for the diversity."""

Values = dict[str, Any]


def measure_file(file: Path) -> Values:
    """Measures one video.

    Returns:
        The measures of ``options.METRICS`` by their keys, and the video's size and frame rate.

    Raises:
        UserError: the file is not a video of two frames or more.
    """
    video, fps = frames_of(file)
    return {
        "num_frames": len(video),
        "height": video.shape[1],
        "width": video.shape[2],
        "fps": fps,
        **measure_video(video, fps),
    }


def frames_of(file: Path) -> tuple[Frames, float]:
    """Reads a video's frames ``[F, H, W, 3]`` and its frames per second.

    Raises:
        UserError: the file cannot be read as a video, or has only one frame.
    """
    try:
        video, fps = read_video(file)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(
            f"{file}: cannot be read as a video ({short_line(first_line(error), 80)}); make it "
            "again or convert it to mp4"
        ) from error
    if len(video) < 2:
        raise UserError(f"{file}: has one frame, and motion needs two; leave it out")
    return video, fps


class Measurements:
    """The measurements of videos, in one JSON file of the output folder.

    Args:
        written: The output folder's files.
        name: The JSON file's name below the folder.
        rules: The version of these measures.
    """

    def __init__(self, written: WrittenFiles, name: str, rules: Any = RULES) -> None:
        self.written, self.name, self.rules = written, name, rules
        self.values: dict[str, Any] = {}
        path = written.folder / name
        written.check([name])
        if path.is_file():
            saved = read_record(path, MEASURED)
            if saved.get("rules") == rules:
                self.values = saved["videos"]

    def of(
        self,
        keys: Sequence[str],
        measure: Callable[[int], Any],
        label: str,
        quiet: bool,
    ) -> list[Any]:
        """The measurement of each key, computed where it is missing.

        Args:
            keys: The content hashes of the videos.
            measure: Measures the video with that index.
            label: The label of the progress bar.
            quiet: Show no progress.
        """
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        waiting = [key for key in dict.fromkeys(keys) if key not in self.values]
        if waiting:
            done = len(first) - len(waiting)
            saved_s = time.monotonic()
            try:
                with progress(len(first), label, quiet, done=done) as bar:
                    for key in waiting:
                        self.values[key] = measure(first[key])
                        bar.advance()
                        if time.monotonic() - saved_s > _SAVE_S:
                            self._save()
                            saved_s = time.monotonic()
            finally:
                self._save()
        return [self.values[key] for key in keys]

    def _save(self) -> None:
        content = {"format_version": 1, "rules": self.rules, "videos": self.values}
        self.written.write_text(self.name, json.dumps(content))


@dataclass(frozen=True)
class SideVideos:
    """The videos of one side, and the folder in which their measurements are kept.

    Attributes:
        side: ``weights`` or ``against``.
        files: The videos: all prompts of the first seed, then those of the next one.
        hashes: The content hash of each.
        prompts: The prompt of each.
        written: The output folder's files.
        quiet: Show no progress.
    """

    side: str
    files: Sequence[Path]
    hashes: Sequence[str]
    prompts: Sequence[str]
    written: WrittenFiles
    quiet: bool

    def measured(
        self,
        name: str,
        measure: Callable[[int], Any],
        label: str,
        rules: Any = RULES,
        keys: Sequence[str] | None = None,
    ) -> list[Any]:
        """Measures the videos, or groups of them, and keeps the values in ``measured/NAME.json``.

        Args:
            name: The file's name.
            measure: Measures the video or group with that index.
            label: The label of the progress bar.
            rules: The version of these measures.
            keys: The name under which each value is saved; default the hash of each video.
        """
        store = Measurements(self.written, f"measured/{name}.json", rules)
        return store.of(self.hashes if keys is None else keys, measure, label, self.quiet)

    def scored(
        self, name: str, score: Callable[[Path, str], Any], label: str, rules: Any
    ) -> list[Any]:
        """The same for a score of a video and its prompt, under the hash and the prompt."""
        keys = [f"{key} {prompt}" for key, prompt in zip(self.hashes, self.prompts, strict=True)]
        return self.measured(
            name,
            lambda index: score(self.files[index], self.prompts[index]),
            label,
            rules,
            keys,
        )


def measure_files(videos: SideVideos) -> list[Values]:
    """Measures the videos of one side."""
    return videos.measured(
        videos.side,
        lambda index: measure_file(videos.files[index]),
        f"measuring {videos.side}",
    )


def measure_groups(videos: SideVideos, prompts: int) -> list[float]:
    """Measures how different each prompt's videos are: the mean distance between its seeds.

    Args:
        videos: The videos of one side.
        prompts: Number of prompts.

    Raises:
        UserError: videos of one prompt differ in size or length.
    """
    keys = [" ".join(videos.hashes[prompt::prompts]) for prompt in range(prompts)]

    def measure(prompt: int) -> float:
        group = videos.files[prompt::prompts]
        frames = [small_frames(frames_of(file)[0]) for file in group]
        if len({video.shape for video in frames}) > 1:
            raise UserError(
                f"{group[0]}: differs in size or length from the same prompt's other videos; make "
                "them alike, or use --seeds 1"
            )
        return pairwise_distance(np.stack(frames))

    name, label = f"{videos.side}_diversity", f"diversity of {videos.side}"
    return [float(value) for value in videos.measured(name, measure, label, keys=keys)]


def small_frames(video: Frames) -> NDArray[np.uint8]:
    """The frames, reduced to 64 pixels on the shorter side if they are larger."""
    height, width = video.shape[1:3]
    scale = _SIDE / min(height, width)
    if scale >= 1:
        return video
    cv2 = required("cv2")
    size = (round(width * scale), round(height * scale))
    return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in video])


def hashes_of(files: Sequence[Path]) -> list[str]:
    """The sha256 of each video."""
    return content_hashes(list(files))
