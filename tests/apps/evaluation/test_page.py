"""The report's tables and lists."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.evaluation.page import (
    examples,
    ranked,
    ranked_lists,
    report_page,
    set_rows,
    side_names,
    table_rows,
    with_interval,
)
from lightx2v_sgmd.apps.evaluation.summary import summarise
from tests.apps.evaluation.test_summary import side

OURS, THEIRS = side([1.0, 5.0, 2.0, 6.0]), side([2.0, 8.0, 3.0, 9.0])
SEEDS = [0, 1, 2, 3]
BOTH = summarise({"weights": OURS, "against": THEIRS}, ["a", "b"], SEEDS, ["optflow", "motion"])


def test_values_have_their_interval_and_differences_their_sign() -> None:
    assert with_interval({"mean": 1.23456, "low": None, "high": None}, 2) == "1.23"
    (row,) = table_rows(BOTH)
    assert row["values"][0].startswith("3.500 [") and row["clear"]
    assert row["difference"] == "-2.000 [-3.000, -1.000]" and row["relative"] == "-36.4 %"


@pytest.mark.parametrize("clear", [True, False])
def test_only_a_difference_that_is_not_chance_is_red(tmp_path: Path, clear: bool) -> None:
    results = copy.deepcopy(BOTH)
    results["differences"]["optflow"]["clear"] = clear
    assert report_page(results, tmp_path, 0).count('<td class="clear">') == int(clear)


def test_a_prompt_is_the_worst_or_the_best_or_neither(tmp_path: Path) -> None:
    flows = [2.0, 8.0, 5.0]
    ours, theirs = side(flows), side([2.0, 3.0, 4.0])
    results = summarise(
        {"weights": ours, "against": theirs}, ["a", "b", "c"], [0, 1, 2], ["optflow"]
    )
    for video in results["videos"]:
        for name in results["sides"]:
            video[name]["file"] = "film.mp4"
    (tmp_path / "film.mp4").write_bytes(b"film")
    kinds = {e["prompt"]: e["kind"] for e in examples(results, tmp_path, 9, ranked(results))}
    assert kinds == {"a": "best", "b": "worst", "c": ""}


def test_sides_of_one_name_are_told_apart() -> None:
    assert side_names(BOTH) == {
        "weights": "x (videos), --weights",
        "against": "x (videos), --against",
    }


def test_the_worst_prompt_is_the_farthest_from_the_reference() -> None:
    order = ranked(BOTH)
    assert order == [1, 0]
    worst, best = ranked_lists(BOTH, order)
    assert worst["prompts"][0][0] == "b" and best["prompts"][0][0] == "a"


def test_without_a_reference_the_stillest_comes_first() -> None:
    alone = summarise({"weights": OURS}, ["a", "b"], SEEDS, ["optflow"])
    assert ranked(alone) == [0, 1] and set_rows(alone) == []
    assert ranked_lists(alone, [0, 1])[0]["title"] == "Least motion"


def test_motion_has_three_rows() -> None:
    titles = [title for title, _, _ in set_rows(BOTH)]
    assert titles == ["Slow videos", "Fast videos", "Distance of the motion"]
