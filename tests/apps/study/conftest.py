"""A small study whose better side is known: in a the square moves, in b it stands still."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lightx2v_sgmd.apps.study.creating import StudyOptions, create_study
from lightx2v_sgmd.apps.study.key import StudyKey
from lightx2v_sgmd.apps.study.votes import Submission
from lightx2v_sgmd.files.video import Frames, write_video

PAIRS, CATCH = 8, 2


@dataclass(frozen=True)
class MadeStudy:
    """A study on disk."""

    folder: Path
    key: StudyKey

    @property
    def page(self) -> Path:
        return self.folder / "study" / "page"


def square_video(speed: int, shade: int) -> Frames:
    video = np.full((8, 32, 48, 3), shade, np.uint8)
    for frame in range(8):
        video[frame, 8:20, 4 + frame * speed : 16 + frame * speed] = (250, 120, 0)
    return video


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MadeStudy]:
    """Ten pairs, two of them catch trials; not to be written to."""
    folder = tmp_path_factory.mktemp("study")
    for side, speed in (("moving", 4), ("still", 0)):
        for index in range(PAIRS):
            name = f"a square number {index} </script>-0.mp4".replace("/", "\u2215")
            write_video(square_video(speed, 20 * index), folder / side / name, 8)
    options = StudyOptions(catch=CATCH, seed=3)
    key = create_study(folder / "moving", folder / "still", folder / "study", options, quiet=True)
    yield MadeStudy(folder, key)


def submission_of(
    key: StudyKey, rater: str, choices: dict[str, str], careless: bool = False
) -> Submission:
    """Votes for side a, side b or a tie; in catch trials the right answer unless careless.

    Args:
        key: The study.
        rater: The rater.
        choices: ``a``, ``b`` or ``tie`` for each question.
        careless: True if catch trials are answered wrongly.
    """
    other = {"first": "second", "second": "first"}
    votes = []
    for pair in key.pairs:
        if pair.good is not None:
            right = other[pair.good] if careless else pair.good
            answers = {question.name: right for question in key.questions}
        else:
            assert pair.a is not None
            slots = {"a": pair.a, "b": other[pair.a], "tie": "tie"}
            answers = {name: slots[choice] for name, choice in choices.items()}
        votes.append(
            {"pair": pair.id, "left": "first", "answers": answers, "seconds": 3, "skipped": False}
        )
    return Submission.model_validate(
        {
            "format_version": 1,
            "study": key.study,
            "rater": rater,
            "submission": "0123456789abcdef",
            "votes": votes,
        }
    )
