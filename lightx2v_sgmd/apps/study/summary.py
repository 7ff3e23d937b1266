"""Results of a study's votes: rates with intervals, sign test, agreement of the raters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from lightx2v_sgmd.apps.study.key import Pair, StudyKey
from lightx2v_sgmd.apps.study.votes import PairVote, Submission
from lightx2v_sgmd.measures.preference import krippendorff_alpha, share_interval, sign_test

FORMAT_VERSION: Final = 1


def summarise(
    study: StudyKey, submissions: Sequence[Submission], replaced: int = 0, catch_errors: int = 0
) -> dict[str, Any]:
    """Summarises what a study found.

    Args:
        study: The key.
        submissions: One for each rater.
        replaced: Submissions that a later one of the same rater has replaced; only reported.
        catch_errors: A rater with more wrong answers in catch trials is left out.

    Returns:
        ``questions`` has for each question the shares of wins, ties and losses of side a, the
        sign test and the agreement; ``raters`` who was counted and who was left out, and why.
    """
    checks = {submission.rater: catch_result(study, submission) for submission in submissions}
    failed = {rater for rater, (wrong, _) in checks.items() if wrong > catch_errors}
    counted = [submission for submission in submissions if submission.rater not in failed]
    return {
        "format_version": FORMAT_VERSION,
        "study": study.study,
        "names": list(study.names),
        "pairs": len(study.judged),
        "catch_trials": len(study.catch_trials),
        "catch_errors": catch_errors,
        "raters": {
            "counted": [submission.rater for submission in counted],
            "unchecked": [
                s.rater for s in counted if study.catch_trials and not checks[s.rater][1]
            ],
            "left_out": [
                {"rater": rater, "wrong": wrong, "of": of}
                for rater, (wrong, of) in checks.items()
                if rater in failed
            ],
        },
        "replaced": replaced,
        "skipped": sum(vote.skipped for s in counted for vote in s.votes),
        "left": _left_share(study, counted),
        "questions": {
            question.name: {"title": question.title, "text": question.text}
            | _question(study, counted, question.name)
            for question in study.questions
        },
    }


def catch_result(study: StudyKey, submission: Submission) -> tuple[int, int]:
    """Wrong answers and all answers in a rater's catch trials; a tie is wrong."""
    good = {pair.id: pair.good for pair in study.catch_trials}
    checked = {question.name for question in study.questions if question.checked}
    answers = [
        answer == good[vote.pair]
        for vote in submission.votes
        if vote.pair in good
        for name, answer in vote.answers.items()
        if name in checked
    ]
    return len(answers) - sum(answers), len(answers)


def outcome(pair: Pair, answer: str) -> int:
    """+1 if an answer is for side a, -1 if it is for side b, 0 for a tie."""
    return 0 if answer == "tie" else 1 if answer == pair.a else -1


def _question(study: StudyKey, submissions: Sequence[Submission], name: str) -> dict[str, Any]:
    places = {pair.id: (index, pair) for index, pair in enumerate(study.judged)}
    rows = [
        (rater, places[vote.pair][0], outcome(places[vote.pair][1], vote.answers[name]))
        for rater, submission in enumerate(submissions)
        for vote in submission.votes
        if vote.pair in places and name in vote.answers
    ]
    if not rows:
        return {"votes": 0}
    raters, pairs, votes = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "votes": len(rows),
        **{
            label: asdict(share_interval(votes == value, raters, pairs))
            for label, value in (("win", 1), ("tie", 0), ("loss", -1))
        },
        "sign_test": asdict(sign_test(votes, pairs)),
        "agreement": krippendorff_alpha(votes, raters, pairs),
    }


def _left_share(study: StudyKey, submissions: Sequence[Submission]) -> float | None:
    """The share of answers for the left video among those for one of the two; 0.5 is no habit."""
    judged = {pair.id for pair in study.judged}
    votes: list[PairVote] = [v for s in submissions for v in s.votes if v.pair in judged]
    chosen = [a == vote.left for vote in votes for a in vote.answers.values() if a != "tie"]
    return sum(chosen) / len(chosen) if chosen else None
