"""The questions of a study: the four of the paper's human evaluation, or others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict

from lightx2v_sgmd.system.errors import UserError, joined, shortened

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_MOST: Final = 20
_MOST_CHARACTERS: Final = 200


class Question(BaseModel):
    """A question about two videos.

    Attributes:
        name: Name in votes and reports.
        title: Title in tables.
        text: The question that raters read.
        checked: True if the answer is known for a video and a spoiled copy of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    title: str
    text: str
    checked: bool = False


PAPER: Final = (
    Question(
        name="overall",
        title="Overall preference",
        text="Overall, which video do you prefer?",
        checked=True,
    ),
    Question(
        name="motion",
        title="Motion quality",
        text="In which video do things move better: more naturally, and as much as they should?",
    ),
    Question(
        name="text",
        title="Text-video alignment",
        text="Which video fits the text above better?",
    ),
    Question(
        name="visual",
        title="Visual quality",
        text="Which video has the better picture: sharper, and with fewer errors?",
        checked=True,
    ),
)
"""The four aspects of arXiv 2605.30116, Table 3; the paper does not print its wording."""


def read_questions(given: Sequence[str]) -> tuple[Question, ...]:
    """The questions that an option names.

    Args:
        given: Names of the paper's questions, or ``NAME=TEXT`` for others; none means all four.

    Raises:
        UserError: a name is unknown, given twice, or a text is empty or too long.
    """
    if not given:
        return PAPER
    known = {question.name: question for question in PAPER}
    found: dict[str, Question] = {}
    for entry in given:
        name, equals, text = entry.partition("=")
        name, text = name.strip(), text.strip()
        if name in found:
            raise UserError(f"--question: {name} is given twice; give it once")
        if not equals:
            if name not in known:
                raise UserError(
                    f"--question: {shortened(name)!r} is none of {joined(list(known))}; write "
                    'another question as NAME="Which video ...?"'
                )
            found[name] = known[name]
            continue
        if not _NAME.fullmatch(name):
            raise UserError(
                f"--question: {shortened(name)!r} is not a name; use at most 32 letters a-z, "
                "digits and _, a letter first"
            )
        if not 0 < len(text) <= _MOST_CHARACTERS:
            raise UserError(
                f"--question {name}: the text has {len(text)} characters; write 1 to "
                f"{_MOST_CHARACTERS}"
            )
        found[name] = Question(name=name, title=name.replace("_", " ").capitalize(), text=text)
    if len(found) > _MOST:
        raise UserError(f"--question: {len(found)} are given; ask at most {_MOST}")
    return tuple(found.values())
