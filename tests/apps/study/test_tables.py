"""The result as text and as a page."""

from __future__ import annotations

from typing import Any

import pytest

from lightx2v_sgmd.apps.study.summary import summarise
from lightx2v_sgmd.apps.study.tables import page_report, percent, table, text_report
from tests.apps.study.conftest import PAIRS, MadeStudy, submission_of

CHOICES = {"overall": "a", "motion": "a", "text": "tie"}


@pytest.fixture
def found(made: MadeStudy) -> dict[str, Any]:
    raters = [submission_of(made.key, name, CHOICES) for name in ("anna", "<b>ben</b>")]
    raters.append(submission_of(made.key, "carl", CHOICES, careless=True))
    return summarise(made.key, raters, replaced=1)


def test_the_table_is_the_papers(found: dict[str, Any]) -> None:
    head, overall, motion, text, visual = table(found)
    assert head[:4] == ["Question", "moving better", "tie", "still better"]
    assert overall[0] == "Overall preference" and motion[0] == "Motion quality"
    assert overall[1:5] == ["100 % [100, 100]", "0 % [0, 0]", "0 % [0, 0]", f"{PAIRS} : 0"]
    assert overall[5] == "0.0078"  # 2 / 2^8
    assert text[1:3] == ["0 % [0, 0]", "100 % [100, 100]"] and text[5] == "1"
    assert visual[1:] == ["no votes", "no votes", "no votes", "", "", ""]


def test_the_text_says_who_was_left_out(found: dict[str, Any]) -> None:
    text = text_report(found)
    assert "2 raters and 8 pairs" in text
    assert (
        "1 rater left out for more than 0 wrong answers in catch trials: carl (4 of 4 wrong)"
        in text
    )
    assert "1 submissions were replaced" in text


def test_the_page_trusts_no_name(found: dict[str, Any]) -> None:
    found["raters"]["unchecked"] = ["<b>ben</b>"]
    page = page_report(found)
    assert "&lt;b&gt;ben" in page and "<b>ben" not in page
    assert "http" not in page


def test_a_share_without_an_interval() -> None:
    assert percent({"mean": 0.654, "low": None, "high": None}) == "65 %"
    assert percent({"mean": 0.654, "low": 0.561, "high": 0.739}) == "65 % [56, 74]"
