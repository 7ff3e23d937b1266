"""The key of a study: which video is whose. Raters never get it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightx2v_sgmd.apps.study.questions import Question
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import RECORD, read_json_file

FORMAT_VERSION: Final = 1
NAME: Final = "key.json"
PAGE: Final = "page"
"""The folder of a study that raters see."""

Slot = Literal["first", "second"]
"""The two videos of a pair, by the names that the page knows; neither name says whose it is."""
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_VideoName = Annotated[str, Field(pattern=r"^[0-9a-f]{16}\.mp4$")]


class Strict(BaseModel):
    """A record of a file: other keys and other types are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Pair(Strict):
    """Two videos to compare.

    Attributes:
        id: The name that the page knows it by.
        prompt: The text that both were made from.
        first: Name of a video below ``page/videos``.
        second: Name of the other one.
        a: The index of the one from the folder ``--a``; None in a catch trial.
        good: The index of the one that is not spoiled; None unless it is a catch trial.
        source: Names of the two original files; one in a catch trial.
    """

    id: _Id
    prompt: str
    first: _VideoName
    second: _VideoName
    a: Slot | None = None
    good: Slot | None = None
    source: tuple[str, ...] = Field(strict=False)

    @property
    def videos(self) -> tuple[str, str]:
        """The names of both videos."""
        return self.first, self.second


class StudyKey(Strict):
    """Everything about a study that its page does not say, and all that it does.

    Attributes:
        format_version: Version of this file.
        study: The study's id.
        names: Names of the two sides in reports.
        folders: The two folders, as they were given.
        questions: The questions.
        pairs: The pairs, catch trials among them, in the order of the page's data.
    """

    format_version: Literal[1]
    study: _Id
    names: tuple[str, str] = Field(strict=False)
    folders: tuple[str, str] = Field(strict=False)
    questions: tuple[Question, ...] = Field(strict=False)
    pairs: tuple[Pair, ...] = Field(strict=False)

    @property
    def catch_trials(self) -> tuple[Pair, ...]:
        """The pairs whose answer is known."""
        return tuple(pair for pair in self.pairs if pair.good is not None)

    @property
    def judged(self) -> tuple[Pair, ...]:
        """The pairs of one video of either side."""
        return tuple(pair for pair in self.pairs if pair.a is not None)


def read_key(file: Path) -> StudyKey:
    """Reads the key of a study.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    remedy = "name the key.json that `study create` wrote"
    if not file.is_file():
        raise UserError(f"{file}: does not exist; {remedy}")
    content = read_json_file(file, RECORD, remedy)
    try:
        key = StudyKey.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}: {where}: {first['msg'][:100]}; {remedy}") from error
    if len({pair.id for pair in key.pairs}) != len(key.pairs):
        raise UserError(f"{file}: two pairs have one id; {remedy}")
    return key
