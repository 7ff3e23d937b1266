"""The report's tables and lists."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
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
from lightx2v_sgmd.files.video import write_video
from tests.apps.evaluation.test_summary import side
from tests.browser import chromium, opened

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


FRAMES_SHOWN = "[...document.querySelectorAll('video')].map(v => Math.floor(8 * v.currentTime))"
STOPPED = "[...document.querySelectorAll('video')].every(v => v.paused && !v.seeking)"
PLAYING = "[...document.querySelectorAll('video')].every(v => !v.paused && v.currentTime > 0.1)"


@pytest.mark.slow
def test_videos_stop_at_one_frame(tmp_path: Path) -> None:
    """By the key and by the button, whenever it is; the arrows go on from that frame."""
    results = copy.deepcopy(BOTH)
    for index, video in enumerate(results["videos"]):
        for side_ in ("weights", "against"):
            video[side_]["file"] = f"{side_}{index}.mp4"
            frames = np.full((24, 64, 64, 3), 20 * index, np.uint8)
            write_video(frames, tmp_path / f"{side_}{index}.mp4", 8)
    (tmp_path / "report.html").write_text(report_page(results, tmp_path, 4), encoding="utf-8")
    with chromium() as browser:
        page, problems = opened(browser, tmp_path / "report.html")
        for wait_ms in (110, 230, 350, 470):
            page.wait_for_function(PLAYING)
            page.wait_for_timeout(wait_ms)
            if wait_ms == 230:
                page.locator("#play").click()
                page.locator("#play").blur()
            else:
                page.keyboard.press("Space")
            page.wait_for_function(STOPPED)
            first, *others = page.evaluate(FRAMES_SHOWN)
            assert len(others) == 3 and set(others) == {first}
            page.keyboard.press("ArrowRight")
            page.wait_for_function(STOPPED)
            assert set(page.evaluate(FRAMES_SHOWN)) == {(first + 1) % 24}
            page.keyboard.press("Space")
        assert problems == []


def test_motion_has_three_rows() -> None:
    rows = {title: value for title, value, _ in set_rows(BOTH)}
    assert list(rows) == ["Slow videos", "Fast videos", "Distance of the motion"]
    # Prompt a alone moves 1 and 2 beside 2 and 3, b alone 5 and 6 beside 8 and 9.
    assert rows["Slow videos"] == "50.0 [50.0, 100.0] %"
    assert rows["Distance of the motion"] == "2.000 [1.000, 3.000]"
    alone = copy.deepcopy(BOTH)
    alone["motion"]["intervals"] = None
    assert set_rows(alone)[0][1] == "50.0 %"
