"""The questions: the paper's four, some of them, or others."""

from __future__ import annotations

import pytest

from lightx2v_sgmd.apps.study.questions import PAPER, read_questions
from lightx2v_sgmd.system.errors import UserError


def test_the_papers_four_are_asked_unless_others_are_given() -> None:
    assert [question.name for question in read_questions(())] == [
        "overall",
        "motion",
        "text",
        "visual",
    ]
    # Text and motion are the same in a spoiled copy as far as anybody can say.
    assert [question.name for question in PAPER if question.checked] == ["overall", "visual"]


def test_a_question_by_name_and_another_with_its_text() -> None:
    motion, hands = read_questions(["motion", "hands = Which video has better hands?"])
    assert motion == PAPER[1]
    assert (hands.name, hands.text) == ("hands", "Which video has better hands?")
    assert hands.title == "Hands" and not hands.checked


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["speed"], "none of overall, motion, text, visual"),
        (["motion", "motion"], "twice"),
        (["Hands=Which?"], "not a name"),
        (["hands="], "0 characters"),
        ([f"q{i}=Which?" for i in range(21)], "at most 20"),
    ],
)
def test_what_is_no_question_is_refused(given: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_questions(given)
