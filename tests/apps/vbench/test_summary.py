"""Scores and set-up: missing videos are counted, and never left out in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.apps.vbench.page import text_report
from lightx2v_sgmd.apps.vbench.results import Score
from lightx2v_sgmd.apps.vbench.suite import Suite
from lightx2v_sgmd.apps.vbench.summary import is_incomplete, summarise
from lightx2v_sgmd.measures.vbench import DIMENSIONS

SUITE = Suite(
    file=Path("info.json"),
    sha256="0" * 64,
    prompts=("a <b>dog</b>", "a cat"),
    texts=("a dog, longer", "a cat, longer"),
    prompts_of=dict.fromkeys(DIMENSIONS, (0, 1)),
    augmented=(Path("longer.txt"), "1" * 64),
)
SETUP = {"weights": "<i>student</i>", "torch": "2.13.0", "vbench": "0.1.5", "vbench_torch": "2.4.1"}


def results(there: int = 10, **measured: int) -> dict[str, Any]:
    """Every score is 0.8; ``measured`` are dimensions with fewer videos."""
    scores = {
        name: Score(0.8, measured.get(name, 10), Path("x.json"))
        for name in DIMENSIONS
        if measured.get(name) != 0
    }
    return summarise(SUITE, range(there), scores, SETUP)


def test_a_complete_set_has_one_total() -> None:
    found = results()
    assert not is_incomplete(found)
    both = (found["vbench"]["aggregate"], found["vbench"]["aggregate_missing_as_zero"])
    assert both[0] == both[1] and both[0]["total"] is not None
    assert "missing" not in text_report(found)


def test_missing_videos_are_counted_and_lower_the_second_total() -> None:
    found = results(there=8, color=5, scene=5)
    assert is_incomplete(found)
    about = found["vbench"]["dimensions"]["scene"]
    assert (about["wanted"], about["measured"], about["missing"]) == (10, 5, 5)
    assert (about["score"], about["score_missing_as_zero"]) == (0.8, 0.4)
    as_found = found["vbench"]["aggregate"]["total"]
    as_zero = found["vbench"]["aggregate_missing_as_zero"]["total"]
    lost = 0.4 / 0.8222 + 0.16  # scene's range ends at 0.8222; two videos of ten lack a colour
    assert as_found - as_zero == pytest.approx(0.2 * lost / 9)  # two of nine of the semantics
    text = text_report(found)
    assert "2 of 10 videos are missing" in text
    assert "measured on fewer videos than wanted: Color, Scene" in text


def test_a_video_without_the_object_is_not_missing() -> None:
    """vbench 0.1.5 scores the colour of an object in the videos that show the object."""
    found = results(color=5)
    about = found["vbench"]["dimensions"]["color"]
    assert (about["measured"], about["missing"], about["score_missing_as_zero"]) == (5, 0, 0.8)
    assert not is_incomplete(found) and "missing" not in text_report(found)


def test_a_score_without_a_list_of_videos_counts_those_that_are_there() -> None:
    """Other programs write a plain number."""
    scores = {"subject_consistency": Score(0.9, None, Path("x.json"))}
    found = summarise(SUITE, (0, 3, 5, 6), scores, SETUP)
    about = found["vbench"]["dimensions"]["subject_consistency"]
    assert (about["wanted"], about["measured"], about["missing"]) == (10, None, 6)
    assert about["score_missing_as_zero"] == pytest.approx(0.9 * 0.4)
    text = text_report(found)
    assert "at most 4 of 10" in text
    assert "measured on fewer videos than wanted: Subject consistency" in text


def test_a_dimension_that_was_not_measured_gives_no_total() -> None:
    found = results(scene=0)
    assert found["vbench"]["aggregate"]["total"] is None
    assert found["vbench"]["aggregate"]["quality"] is not None
    assert found["vbench"]["not_measured"] == ["scene"]
    assert "Total" in text_report(found) and "not measured: scene" in text_report(found)
