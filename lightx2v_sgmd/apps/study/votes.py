"""Votes: what a rater's browser sends or saves, checked against the study."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from lightx2v_sgmd.apps.study.key import Slot, Strict, StudyKey
from lightx2v_sgmd.system.errors import short_line
from lightx2v_sgmd.untrusted.json_text import Limits, parse_json

SUBMISSION: Final = Limits(size=4 * 2**20, values=200_000, depth=6, unique=True)
"""Limits of one rater's votes: 2,000 pairs with 20 questions fit."""
_MOST_S: Final = 86_400.0

Answer = Literal["first", "second", "tie"]


class PairVote(Strict):
    """A rater's answers for one pair.

    Attributes:
        pair: The pair's id.
        left: The index of the video that was on the left.
        answers: The answer to each question; none if the pair was skipped.
        seconds: Time for which the pair was shown.
        skipped: True if a video could not be played.
    """

    pair: str
    left: Slot
    answers: dict[str, Answer]
    seconds: Annotated[float, Field(ge=0, le=_MOST_S, allow_inf_nan=False)]
    skipped: bool


class Submission(Strict):
    """All votes of one rater so far.

    Attributes:
        format_version: Version of this form.
        study: The id of the study.
        rater: The name that the rater gave.
        submission: Names the browser in which the rater voted.
        votes: The votes.
    """

    format_version: Literal[1]
    study: str
    rater: Annotated[str, Field(min_length=1, max_length=64)]
    submission: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    votes: tuple[PairVote, ...] = Field(strict=False)


def most_bytes(study: StudyKey) -> int:
    """The most bytes that a submission to a study has room for: twice a rater's complete votes."""
    answers = {question.name: "second" for question in study.questions}
    vote = {"pair": "0" * 16, "left": "second", "answers": answers}
    size = len(json.dumps({**vote, "seconds": _MOST_S / 7, "skipped": False}))
    return min(SUBMISSION.size, 4096 + 2 * size * len(study.pairs))


def parse_submission(text: bytes | str, study: StudyKey) -> Submission:
    """Reads a submission and checks it.

    Raises:
        ValueError: it is no submission, or one of another study; the message is a reason.
    """
    content: Any = parse_json(text, SUBMISSION)
    try:
        found = Submission.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the votes"
        raise ValueError(short_line(f"{where}: {first['msg']}", 160)) from None
    if found.study != study.study:
        raise ValueError("these votes are of another study")
    if not found.rater.isprintable() or found.rater != found.rater.strip():
        raise ValueError("rater: holds characters that cannot be printed; use a plain name")
    pairs = {pair.id for pair in study.pairs}
    questions = {question.name for question in study.questions}
    seen: set[str] = set()
    for vote in found.votes:
        if vote.pair not in pairs:
            raise ValueError("a vote is for a pair that this study does not have")
        if vote.pair in seen:
            raise ValueError("a pair has two votes")
        seen.add(vote.pair)
        if not set(vote.answers) <= questions:
            raise ValueError("an answer is to a question that this study does not ask")
    return found
