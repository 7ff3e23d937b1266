"""Votes as browsers send them: read whole, or refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightx2v_sgmd.apps.study.votes import SUBMISSION, most_bytes, parse_submission
from tests.apps.study.conftest import MadeStudy, submission_of

CHOICES = {"overall": "a", "motion": "a", "text": "tie", "visual": "b"}


def test_votes_are_read_as_they_were_given(made: MadeStudy) -> None:
    given = submission_of(made.key, "anna", CHOICES)
    assert parse_submission(given.model_dump_json(), made.key) == given


def test_there_is_room_for_complete_votes(made: MadeStudy) -> None:
    whole = json.loads(submission_of(made.key, "x" * 64, CHOICES).model_dump_json())
    assert len(json.dumps(whole, indent=1)) < most_bytes(made.key) < SUBMISSION.size


def changed(made: MadeStudy, **change: Any) -> str:
    content = json.loads(submission_of(made.key, "anna", CHOICES).model_dump_json())
    vote = content["votes"][0]
    for name, value in change.items():
        if name.startswith("vote_"):
            vote[name.removeprefix("vote_")] = value
        else:
            content[name] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"study": "0" * 16}, "another study"),
        ({"rater": ""}, "rater"),
        ({"rater": "x" * 65}, "rater"),
        ({"rater": "an\nna"}, "cannot be printed"),
        ({"submission": "../x"}, "submission"),
        ({"extra": 1}, "extra"),
        ({"vote_pair": "f" * 16}, "does not have"),
        ({"vote_answers": {"speed": "first"}}, "does not ask"),
        ({"vote_answers": {"motion": "a"}}, "votes.0.answers"),
        ({"vote_seconds": -1}, "votes.0.seconds"),
        ({"vote_seconds": 1e9}, "votes.0.seconds"),
        ({"vote_seconds": "3"}, "votes.0.seconds"),
        ({"vote_left": "a"}, "votes.0.left"),
        ({"votes": 3}, "votes"),
    ],
)
def test_other_content_is_refused(made: MadeStudy, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_submission(changed(made, **change), made.key)


def test_a_pair_has_one_vote(made: MadeStudy) -> None:
    content = json.loads(submission_of(made.key, "anna", CHOICES).model_dump_json())
    content["votes"].append(content["votes"][0])
    with pytest.raises(ValueError, match="two votes"):
        parse_submission(json.dumps(content), made.key)


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b"\xff", b"[" * 100_000, b" " * (SUBMISSION.size + 1)]
)
def test_what_is_no_json_object_is_refused(made: MadeStudy, text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_submission(text, made.key)
