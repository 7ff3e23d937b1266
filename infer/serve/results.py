"""The files of a server: one folder with its queue, and a video for each completed job.

A file's name is made from the name that the server gave the job, never from a request.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infer.serve.jobs import JobStore
from infer.serve.options import ServeOptions
from lightx2v_sgmd.outputs import appearing, clean_temporaries, move
from lightx2v_sgmd.outputs.lock import NAME as LOCK
from lightx2v_sgmd.system.errors import UserError

QUEUE: Final = "queue.sqlite"
VIDEOS: Final = "videos"
SUFFIXES: Final = (".mp4", ".png")
"""The suffixes of what students make: videos, and images."""
PREVIEWS: Final = "previews"
IMAGES: Final = "images"
_OWN_NAME: Final = re.compile(r"video_[0-9a-f]{32}")
"""A job's name, from which its video's file is named."""


@dataclass(frozen=True)
class Results:
    """The folder of a server."""

    folder: Path

    @property
    def queue(self) -> Path:
        """The file of the queue."""
        return self.folder / QUEUE

    def video(self, name: str, suffix: str = ".mp4") -> Path:
        """The file of a job's video, or with the other suffix of its image.

        Args:
            name: The job's name.
            suffix: One of ``SUFFIXES``.

        Raises:
            UserError: this program gives no job such a name, which may lead out of the folder.
        """
        if not _OWN_NAME.fullmatch(name):
            raise UserError(f"{self.queue}: has a job {name!r}; choose another --data folder")
        return self.folder / VIDEOS / f"{name}{suffix}"

    def found(self, name: str) -> Path | None:
        """The file of a finished job, video or image; None if it is not there."""
        files = [self.video(name, suffix) for suffix in SUFFIXES]
        return next((file for file in files if file.is_file()), None)

    def preview(self, name: str) -> Path:
        """The file of an unfinished video's preview."""
        return self.folder / PREVIEWS / f"{name}.webp"

    def image(self, name: str) -> Path:
        """The file of the image that an unfinished job's video starts from.

        Raises:
            UserError: as ``video``.
        """
        return self.folder / IMAGES / self.video(name).with_suffix(".image").name

    def check(self) -> None:
        """Refuses a folder that holds files but no queue: it is not a server's.

        Raises:
            UserError: names the first of the files.
        """
        if self.queue.exists() or not self.folder.is_dir():
            return
        others = sorted(path.name for path in self.folder.iterdir() if path.name != LOCK)
        if others:
            raise UserError(
                f"--data: {self.folder} holds {others[0]} and was not made by serve; choose "
                "another folder"
            )

    def discard(self) -> None:
        """Removes a queue without jobs, for a server that did not start."""
        for suffix in ("", "-wal", "-shm"):
            self.queue.with_name(QUEUE + suffix).unlink(missing_ok=True)
        for folder in (VIDEOS, PREVIEWS, IMAGES):
            with suppress(OSError):
                (self.folder / folder).rmdir()

    def remove(self, name: str) -> None:
        """Removes a job's files if they are there."""
        for suffix in SUFFIXES:
            self.video(name, suffix).unlink(missing_ok=True)
        self.remove_sources(name)

    def remove_sources(self, name: str) -> None:
        """Removes what only an unfinished job needs: its preview and its image."""
        self.remove_preview(name)
        self.image(name).unlink(missing_ok=True)

    def keep_image(self, name: str, content: bytes) -> None:
        """Writes a job's image, before the job is in the queue."""
        with appearing(self.image(name)) as temporary:
            temporary.write_bytes(content)

    def remove_preview(self, name: str) -> None:
        """Removes a job's preview if it is there."""
        self.preview(name).unlink(missing_ok=True)

    def show(self, name: str, picture: bytes) -> None:
        """Replaces a job's preview; one that cannot be written is left out."""
        file = self.preview(name)
        temporary = file.with_suffix(".part")
        with suppress(OSError):
            temporary.write_bytes(picture)
            move(temporary, file)

    def sweep(self, store: JobStore) -> None:
        """Removes what dead processes left: half-written files, previews, and videos of no job."""
        previews = self.folder / PREVIEWS
        previews.mkdir(exist_ok=True)
        for file in [*previews.glob("video_*.webp"), *previews.glob("video_*.part")]:
            if _OWN_NAME.fullmatch(file.stem):
                file.unlink(missing_ok=True)
        folder = self.folder / VIDEOS
        folder.mkdir(exist_ok=True)
        clean_temporaries(folder)
        names = store.names()
        for file in [file for suffix in SUFFIXES for file in folder.glob(f"video_*{suffix}")]:
            if _OWN_NAME.fullmatch(file.stem) and file.stem not in names:
                self.remove(file.stem)

    def sweep_images(self, store: JobStore) -> None:
        """Removes images of no unfinished job.

        Before requests are accepted: of a new job the image is written first.
        """
        folder = self.folder / IMAGES
        folder.mkdir(exist_ok=True)
        clean_temporaries(folder)
        for file in folder.glob("video_*.image"):
            if _OWN_NAME.fullmatch(file.stem):
                job = store.get(file.stem)
                if job is None or job.status in ("completed", "failed"):
                    file.unlink(missing_ok=True)

    def retire(self, store: JobStore, options: ServeOptions) -> None:
        """Removes finished videos that are older, or take more space, than is kept."""
        before = time.time() - 3600 * options.keep_hours
        for name in store.remove_finished(before, options.keep_gib * 2**30):
            self.remove(name)
