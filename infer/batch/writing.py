"""Writes videos while the next frames are still being decoded.

Each finished video has a small JSON file beside it that says what it is (``sidecars``), so a run
that was stopped can go on behind it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lightx2v_sgmd.files.video import Frames, frame_writer

_CHUNKS_AHEAD: Final = 4
"""Chunks of frames that may wait for the encoder: memory is bounded, not by the video's length."""


class _End:
    """The last thing in a queue: whether the video is whole."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole


class _Abandoned(Exception):
    """The video will not be finished; what was written of it goes."""


class Pending:
    """A video that is being written by a thread of its own."""

    def __init__(self, path: Path, fps: float, publish: Callable[[Path], None]) -> None:
        self.path, self.fps, self.publish = path, fps, publish
        self.error: Exception | None = None
        self._queue: queue.Queue[Frames | _End] = queue.Queue(_CHUNKS_AHEAD)
        self._thread = threading.Thread(target=self._run, name=f"write {path.name}", daemon=True)
        self._thread.start()

    def put(self, chunk: Frames) -> None:
        """Hands over frames; waits while the encoder is behind.

        Raises:
            UserError: what was handed over before could not be written.
        """
        if self.error is not None:
            raise self.error
        self._queue.put(chunk)

    def end(self, whole: bool) -> None:
        """Nothing more comes; unless ``whole``, nothing is kept."""
        self._queue.put(_End(whole))

    def wait(self) -> None:
        """Waits until the file is there.

        Raises:
            UserError: it could not be written.
        """
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        ended = False
        try:
            with frame_writer(self.path, self.fps, self.publish) as write:
                while not isinstance(item := self._queue.get(), _End):
                    write(item)
                ended = True
                if not item.whole:
                    raise _Abandoned
        except _Abandoned:
            pass
        except Exception as error:  # handed to whoever waits
            self.error = error
            while not ended:  # let the producer through: it learns of it at its next call
                ended = isinstance(self._queue.get(), _End)


@contextmanager
def writing(path: Path, fps: float, publish: Callable[[Path], None]) -> Iterator[Pending]:
    """A video to put frames into; after the block its last frames are still being written.

    Args:
        path: The mp4 or, of an image, the PNG.
        fps: Frames per second.
        publish: Gives the finished file its name.
    """
    pending = Pending(path, fps, publish)
    try:
        yield pending
    except BaseException:
        pending.end(whole=False)
        raise
    pending.end(whole=True)
