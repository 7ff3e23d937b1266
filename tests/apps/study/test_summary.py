"""Results of a study, on votes whose answer is known."""

from __future__ import annotations

import pytest

from lightx2v_sgmd.apps.study.summary import catch_result, summarise
from lightx2v_sgmd.apps.study.votes import Submission
from tests.apps.study.conftest import CATCH, PAIRS, MadeStudy, submission_of

A = {"overall": "a", "motion": "a", "text": "tie", "visual": "b"}
B = {"overall": "b", "motion": "a", "text": "tie", "visual": "b"}


def test_the_shares_are_those_of_the_votes_whatever_the_slots(made: MadeStudy) -> None:
    found = summarise(made.key, [submission_of(made.key, "anna", A)])
    shares = {
        name: tuple(question[label]["mean"] for label in ("win", "tie", "loss"))
        for name, question in found["questions"].items()
    }
    assert shares == {
        "overall": (1, 0, 0),
        "motion": (1, 0, 0),
        "text": (0, 1, 0),
        "visual": (0, 0, 1),
    }
    motion, visual = found["questions"]["motion"], found["questions"]["visual"]
    assert motion["votes"] == PAIRS  # catch trials are no votes
    assert motion["sign_test"] == {
        "wins": PAIRS,
        "losses": 0,
        "ties": 0,
        "p_value": pytest.approx(2 / 2**PAIRS),
    }
    assert (visual["sign_test"]["wins"], visual["sign_test"]["losses"]) == (0, PAIRS)
    assert found["questions"]["text"]["sign_test"]["p_value"] == 1
    assert motion["agreement"] is None  # one rater


def test_raters_who_differ(made: MadeStudy) -> None:
    raters = [submission_of(made.key, "anna", A), submission_of(made.key, "ben", B)]
    overall = summarise(made.key, raters)["questions"]["overall"]
    assert overall["win"]["mean"] == overall["loss"]["mean"] == 0.5
    assert overall["sign_test"]["ties"] == PAIRS  # one vote for each side
    # They never agree, so all coincidences are of unlike values: 1 - (2N - 1) 2N / (2 N^2).
    expected = 1 - 2 * PAIRS * (2 * PAIRS - 1) / (2 * PAIRS**2)
    assert overall["agreement"] == pytest.approx(expected)


def test_a_rater_who_fails_a_catch_trial_is_left_out_and_counted(made: MadeStudy) -> None:
    careful = submission_of(made.key, "anna", A)
    careless = submission_of(made.key, "ben", B, careless=True)
    assert catch_result(made.key, careful) == (0, 2 * CATCH)  # overall and visual, each trial
    assert catch_result(made.key, careless) == (2 * CATCH, 2 * CATCH)
    found = summarise(made.key, [careful, careless])
    assert found["raters"]["counted"] == ["anna"]
    assert found["raters"]["left_out"] == [{"rater": "ben", "wrong": 4, "of": 4}]
    assert found["questions"]["overall"]["win"]["mean"] == 1
    forgiving = summarise(made.key, [careful, careless], catch_errors=4)
    assert forgiving["raters"]["counted"] == ["anna", "ben"]
    assert forgiving["questions"]["overall"]["win"]["mean"] == 0.5


def test_a_rater_who_met_no_catch_trial_is_named(made: MadeStudy) -> None:
    whole = submission_of(made.key, "anna", A)
    judged = {pair.id for pair in made.key.judged}
    part = tuple(vote for vote in whole.votes if vote.pair in judged)[:3]
    stopped = Submission.model_validate(whole.model_dump() | {"votes": part})
    found = summarise(made.key, [stopped])
    assert found["raters"]["unchecked"] == ["anna"]
    assert found["questions"]["motion"]["votes"] == 3


def test_a_habit_of_choosing_left_is_seen(made: MadeStudy) -> None:
    found = summarise(made.key, [submission_of(made.key, "anna", {"overall": "a"})])
    first = sum(pair.a == "first" for pair in made.key.judged)
    assert found["left"] == first / PAIRS  # the fixture shows the first video on the left
    assert summarise(made.key, [])["left"] is None
