"""The files of a server: one folder with its queue, and a video for each completed job.

A file's name is made from the name that the server gave the job, never from a request.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infer.serve.jobs import JobStore
from infer.serve.options import ServeOptions
from lightx2v_sgmd.outputs import clean_temporaries

QUEUE: Final = "queue.sqlite"
VIDEOS: Final = "videos"


@dataclass(frozen=True)
class Results:
    """The folder of a server."""

    folder: Path

    @property
    def queue(self) -> Path:
        """The file of the queue."""
        return self.folder / QUEUE

    def video(self, name: str) -> Path:
        """The file of a job's video."""
        return self.folder / VIDEOS / f"{name}.mp4"

    def remove(self, name: str) -> None:
        """Removes a job's video if it is there."""
        with suppress(FileNotFoundError):
            self.video(name).unlink()

    def sweep(self, store: JobStore) -> None:
        """Removes what dead processes left: half-written files, and videos of no job."""
        folder = self.folder / VIDEOS
        folder.mkdir(exist_ok=True)
        clean_temporaries(folder)
        names = store.names()
        for file in folder.glob("video_*.mp4"):
            if file.stem not in names:
                self.remove(file.stem)

    def retire(self, store: JobStore, options: ServeOptions) -> None:
        """Removes finished videos that are older, or take more space, than is kept."""
        before = time.time() - 3600 * options.keep_hours
        for name in store.remove_finished(before, options.keep_gib * 2**30):
            self.remove(name)
