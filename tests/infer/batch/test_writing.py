"""Writing a video in a thread: it appears whole or not at all, and its error reaches the caller."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.batch.writing import writing

CHUNK = np.zeros((2, 32, 32, 3), np.uint8)


def named(file: Path) -> Callable[[Path], None]:
    """Gives a finished video its name."""

    def publish(temporary: Path) -> None:
        temporary.replace(file)

    return publish


def test_a_video_appears_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    with writing(file, 8, named(file)) as pending:
        pending.put(CHUNK)
        assert not file.exists()
    pending.wait()
    assert list(tmp_path.iterdir()) == [file]


def test_an_abandoned_video_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    with (
        pytest.raises(KeyboardInterrupt),
        writing(file, 8, named(file)) as pending,
    ):
        pending.put(CHUNK)
        raise KeyboardInterrupt
    pending.wait()
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_thread_reaches_the_caller_who_is_not_left_waiting(tmp_path: Path) -> None:
    def refuse(temporary: Path) -> None:
        raise ValueError("no such name")

    with writing(tmp_path / "a.mp4", 8, refuse) as pending:
        pending.put(CHUNK)
    with pytest.raises(ValueError, match="no such name"):
        pending.wait()
    wrong: Any = np.zeros((2, 32, 32), np.uint8)  # no colours: the encoder fails at once
    with pytest.raises(Exception), writing(tmp_path / "b.mp4", 8, refuse) as pending:  # noqa: B017
        for _ in range(20):  # more than the queue holds
            pending.put(wrong)
